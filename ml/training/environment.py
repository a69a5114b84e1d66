"""What a training run's numbers depend on, besides its snapshot, configuration and seed.

On a CPU the same environment gives the same weights to the bit. The number of threads decides how
sums are split, and the processor's instruction set in which order they are added. On a GPU,
deterministic kernels are used. Where an operation has none, torch warns and uses another
(https://docs.pytorch.org/docs/stable/notes/randomness.html).
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

from ml.program.device import Device, has_fast_bfloat16
from ml.program.gpu_memory import apply_limit, memory_errors

PACKAGES = (
    "torch", "numpy", "scipy", "scikit-learn", "opencv-python-headless", "simplejpeg", "pillow",
    "openvino",
)  # fmt: skip
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "NIGHTSCORE_PRECISION",
    "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def collect(device: Device) -> dict[str, Any]:
    """Describe the environment of this process.

    Returns:
        name → a string, number, boolean or None; flat, so that two can be compared.
    """
    return {
        "code": code_version(),
        "python": platform.python_version(),
        **{f"package {name}": _package_version(name) for name in PACKAGES},
        "cpu": _cpu_model(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "cpu bfloat16": has_fast_bfloat16(),
        "threads": torch.get_num_threads(),
        "device": device,
        **(_gpu() if device == "cuda" else {}),
        **{f"variable {name}": os.environ.get(name) for name in VARIABLES},
    }


def code_version() -> str:
    """The commit of the code, with a plus sign if files differ; else the package's version."""
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return process.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"nightscore {version('nightscore')}"


def diff(recorded: Mapping[str, Any], reproduced: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Compare two environments; returns what differs, name → [recorded, reproduced]."""
    return {
        name: [recorded.get(name), reproduced.get(name)]
        for name in dict.fromkeys([*recorded, *reproduced])
        if recorded.get(name) != reproduced.get(name)
    }


@contextmanager
def deterministic(device: Device, threads: int | None = None) -> Iterator[None]:
    """Make training repeatable while the context is open.

    On a GPU it asks for deterministic kernels, and keeps to the limit of the GPU's memory.

    Args:
        device: where to train.
        threads: the number of CPU threads; None: as many as torch has chosen.

    Raises:
        GpuMemoryError: there is too little memory on the GPU.
    """
    default_threads = torch.get_num_threads()
    torch.set_num_threads(threads or default_threads)
    if device == "cuda":
        # Must be set before the first matrix is multiplied.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Together with that torch fills all new memory before it is written: a second kernel for
        # each operation. No operation used here reads what it has not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with memory_errors(device):
            if device == "cuda":
                apply_limit()
            yield
    finally:
        torch.set_num_threads(default_threads)
        if device == "cuda":
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def _package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _gpu() -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "deterministic kernels": torch.are_deterministic_algorithms_enabled(),
    }
