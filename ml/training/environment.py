"""What a training run's numbers depend on besides its snapshot, configuration and seed.

On a CPU the same of all this gives the same weights to the bit: sums are split by the number of
threads, and which instructions a processor has decides in which order they are added. On a GPU
deterministic kernels are asked for; an operation that has none runs all the same, and torch warns
of it (https://docs.pytorch.org/docs/stable/notes/randomness.html).
"""

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ml.program import device
from ml.program.device import Device
from ml.program.gpu_memory import apply_limit, memory_errors

PACKAGES = (
    "torch", "numpy", "scipy", "scikit-learn", "opencv-python-headless", "simplejpeg", "pillow",
    "openvino",
)  # fmt: skip
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "NIGHTSCORE_PRECISION",
    "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def collect(place: Device) -> dict[str, Any]:
    """The circumstances of this process, name → a string, number or None; flat, to be compared."""
    return {
        "code": code_version(),
        "python": platform.python_version(),
        **{f"package {name}": _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "cpu bfloat16": device.has_fast_bfloat16(),
        "threads": torch.get_num_threads(),
        "device": place,
        **(_gpu() if place == "cuda" else {}),
        **{f"variable {name}": os.environ.get(name) for name in VARIABLES},
    }


def code_version() -> str:
    """The commit this runs from, with a plus sign when files differ; else the package's version."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"nightscore {version('nightscore')}"


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What is not the same, name → [recorded, now]."""
    return {
        name: [recorded.get(name), now.get(name)]
        for name in dict.fromkeys([*recorded, *now])
        if recorded.get(name) != now.get(name)
    }


@contextmanager
def fixed(place: Device, threads: int | None = None) -> Iterator[None]:
    """Train repeatably while the context is open: with `threads` threads (None: as many as there
    are), on a GPU with deterministic kernels where there are such and within its memory's limit
    (GpuMemoryError when that is too little)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    if place == "cuda":
        # Read when the first matrix is multiplied.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with memory_errors(place):
            if place == "cuda":
                apply_limit()
            yield
    finally:
        torch.set_num_threads(before)
        if place == "cuda":
            torch.use_deterministic_algorithms(False)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _gpu() -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "deterministic kernels": torch.are_deterministic_algorithms_enabled(),
    }
