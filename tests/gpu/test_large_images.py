"""Images of 512 x 512 pixels: batches keep within the memory, and become smaller when they must."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ml.models import build
from ml.program.gpu_memory import VARIABLE
from ml.program.info import ANOMALY, ProgramInfo, sha256
from ml.program.precision import TOLERANCE
from ml.program.program_file import export
from tests.gpu.conftest import IS_REHEARSAL
from tests.gpu.trained import model

_SIZE = (64, 64) if IS_REHEARSAL else (512, 512)
_IMAGES = 8 if IS_REHEARSAL else 96
_LIMIT_MIB = 4096
# Enough for a batch of as many images as there are pixels for.
_AMPLE_MIB = 24 * 1024


@pytest.fixture(scope="module")
def job(device, tmp_path_factory) -> dict[str, Any]:
    """The detector of `nightscore.yaml` for large images; fresh weights do for memory."""
    settings = model("anomaly_segmenter")
    torch.manual_seed(0)
    classes = ("normal", "anomalous")
    network = build(settings.architecture, _SIZE, classes, settings.options).eval()
    path = tmp_path_factory.mktemp("large") / "program.pt2"
    export(network, path, _SIZE)
    info = ProgramInfo("large", 1, ANOMALY, classes, _SIZE, 0.5, sha256(path))
    described = {"program": str(path), "info": asdict(info), "device": device}
    return described | {"images": _IMAGES, "tight": False}


def _scored(job: dict[str, Any], folder: Path, limit_mib: int | None) -> dict[str, Any]:
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    limit = {VARIABLE: f"{limit_mib}MiB"} if limit_mib else {}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.large_images", str(path)],
        env=os.environ | limit,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_large_images_are_scored_within_the_limit(job, tmp_path, record_property):
    found = _scored(job, tmp_path, _LIMIT_MIB)
    record_property("images per batch", found["after"])
    assert len(found["scores"]) == _IMAGES
    if not IS_REHEARSAL:
        record_property("MiB held at most", found["reserved"] // 2**20)
        assert found["reserved"] <= _LIMIT_MIB * 2**20


def test_a_batch_for_which_memory_runs_out_is_halved(real_gpu, job, tmp_path, record_property):
    roomy = _scored(job, tmp_path, None)
    tight = _scored(job | {"tight": True}, tmp_path, _AMPLE_MIB)
    record_property("images per batch at first", tight["before"])
    record_property("images per batch in the end", tight["after"])
    record_property("MiB held at most", tight["reserved"] // 2**20)
    assert tight["reserved"] <= _AMPLE_MIB * 2**20
    assert tight["after"] < tight["before"]
    pairs = zip(tight["scores"], roomy["scores"], strict=True)
    assert max(abs(value - other) for value, other in pairs) <= TOLERANCE["float32"]
