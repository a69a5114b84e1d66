"""Detectors of other libraries, each run as a process in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.errors import ContenderError
from benchmarks.models.figures import judged, unit_scores
from benchmarks.paths import REPOSITORY
from ml.config.schema import Model

if TYPE_CHECKING:
    from ml.training.data import Splits

PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
_SCRIPT = REPOSITORY / "benchmarks" / "peers" / "anomalib_models.py"
_LONGEST_S = 3600
_LINES_OF_LOG = 30
# What the script says of itself in MB, seconds and images per second.
_MEASURED = ("train_seconds", "images_per_second", "size_mb")


def detect(name: str, model: Model, splits: "Splits", seed: int, folder: Path) -> dict[str, float]:
    """The figures of a peer.

    It trains on the normal images that `model` trains on, at the same size, which it enlarges to
    twice as much. Its threshold is chosen by the same rule from the same held-out images. Its
    figures are those of `benchmarks.models.figures.judged`, and train_seconds, images_per_second
    and size_mb as the peer measured them itself.

    Raises:
        ContenderError: it failed or took more than an hour; the message ends with what it said.
    """
    job_folder = folder / f"{name}-{seed}"
    job_folder.mkdir()
    height, width = model.input_size
    np.savez(
        job_folder / "images.npz",
        normal=splits.train.pixels[splits.train.labels == 0],
        holdout=splits.holdout.pixels,
        test=splits.test.pixels,
    )
    job = {
        "name": name,
        "seed": seed,
        "size": [2 * height, 2 * width],
        "images": str(job_folder / "images.npz"),
    }
    answer = _run(job, job_folder)
    with np.load(job_folder / "scores.npz") as raw:
        normal = raw["holdout"][splits.holdout.labels == 0]
        held, test = (unit_scores(raw[part], normal) for part in ("holdout", "test"))
    found = judged(model.threshold, (held, splits.holdout.labels), (test, splits.test.labels))
    return found | {key: answer[key] for key in _MEASURED}


def _run(job: dict[str, Any], job_folder: Path) -> dict[str, Any]:
    path, log = job_folder / "job.json", job_folder / "log.txt"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [str(PYTHON), str(_SCRIPT), str(path)]
    with log.open("w", encoding="utf-8") as output:
        try:
            code = subprocess.run(
                command, stdout=output, stderr=output, timeout=_LONGEST_S, env=_environment()
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_OF_LOG:]
        raise ContenderError(f"{job['name']} ended with {code}. It said last:\n" + "\n".join(said))
    answer: dict[str, Any] = json.loads((job_folder / "answer.json").read_text(encoding="utf-8"))
    return answer


def _environment() -> dict[str, str]:
    """Without the way to this environment's packages, and without downloads of weights."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1"
    }
