"""Detectors of other libraries, each run as a process in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.figures import judged, unit_scores
from benchmarks.runner import REPOSITORY, ContenderError
from ml.config.schema import Model

if TYPE_CHECKING:
    from ml.training.data import Splits

PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
_SCRIPT = REPOSITORY / "benchmarks" / "peers" / "anomalib_models.py"
_LONGEST_S = 3600
_LINES_OF_LOG = 30
# What the script says of itself in MB, seconds and images a second.
_MEASURED = ("train_seconds", "images_per_second", "size_mb")


def detect(name: str, model: Model, parts: "Splits", seed: int, folder: Path) -> dict[str, float]:
    """The figures of a peer: those of `benchmarks.figures.judged`, and train_seconds,
    images_per_second and size_mb as the peer measured them itself.

    It is given the normal images that `model` trains from, at the same size, which it enlarges to
    twice as much; its threshold is chosen by the same rule from the same held-out images.

    Raises
    ------
    ContenderError: it failed or took more than an hour; the message ends with what it said.
    """
    place = folder / f"{name}-{seed}"
    place.mkdir()
    height, width = model.input_size
    np.savez(
        place / "images.npz",
        normal=parts.train.pixels[parts.train.labels == 0],
        holdout=parts.holdout.pixels,
        test=parts.test.pixels,
    )
    job = {
        "name": name,
        "seed": seed,
        "size": [2 * height, 2 * width],
        "images": str(place / "images.npz"),
    }
    answer = _run(job, place)
    with np.load(place / "scores.npz") as raw:
        normal = raw["holdout"][parts.holdout.labels == 0]
        held, test = (unit_scores(raw[part], normal) for part in ("holdout", "test"))
    found = judged(model.threshold, (held, parts.holdout.labels), (test, parts.test.labels))
    return found | {key: answer[key] for key in _MEASURED}


def _run(job: dict[str, Any], place: Path) -> dict[str, Any]:
    path, log = place / "job.json", place / "log.txt"
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
    answer: dict[str, Any] = json.loads((place / "answer.json").read_text(encoding="utf-8"))
    return answer


def _environment() -> dict[str, str]:
    """Without the way to this environment's packages, and without downloads of weights."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1"
    }
