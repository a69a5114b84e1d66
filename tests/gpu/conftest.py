"""Tests that need an NVIDIA GPU and none of MLflow, Airflow and OpenVINO; they carry the mark `gpu`.

With NIGHTSCORE_GPU_REHEARSAL=1 the CPU stands in for the GPU, with fewer images: that tries the
tests, not the GPU. docs/gpu-check.md says how they are run on a machine that has one.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from ml.program.device import Device, has_gpu
from tests.gpu.trained import Trained, train

IS_REHEARSAL = os.environ.get("NIGHTSCORE_GPU_REHEARSAL") == "1"
_FOLDER = Path(__file__).parent
_NO_GPU = "torch sees no NVIDIA GPU (NIGHTSCORE_GPU_REHEARSAL=1 tries these tests on the CPU)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if _FOLDER in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.gpu)
    if ours and not IS_REHEARSAL and not has_gpu():
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=_NO_GPU))


@pytest.fixture(scope="session")
def device() -> Device:
    return "cpu" if IS_REHEARSAL else "cuda"


@pytest.fixture(scope="session")
def train_once(device, tmp_path_factory) -> Callable[[str], Trained]:
    """An architecture, trained at the first call."""
    images, epochs = (120, 1) if IS_REHEARSAL else (4000, 4)
    folder = tmp_path_factory.mktemp("trained")
    return cache(lambda architecture: train(architecture, device, folder, images, epochs))


@pytest.fixture
def real_gpu() -> None:
    """For tests of what a CPU does not have: a memory of its own that can be used up."""
    if IS_REHEARSAL:
        pytest.skip("needs a real GPU: a CPU has no memory of its own to use up")


@pytest.fixture(autouse=True)
def _plain_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NIGHTSCORE_PRECISION", "NIGHTSCORE_GPU_MEMORY"):
        monkeypatch.delenv(name, raising=False)
