"""Where to compute."""

import os
from pathlib import Path
from typing import Literal

from ml.errors import ConfigurationError

Device = Literal["cpu", "cuda"]

# Driver files: NVIDIA's on Linux, and that of the Windows subsystem for Linux.
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def select_device() -> Device:
    """`cuda` when there is a usable GPU, else `cpu`; `NIGHTSCORE_DEVICE` (cpu, cuda) overrides.

    Raises ConfigurationError when the device asked for is not there.
    """
    wish = os.environ.get("NIGHTSCORE_DEVICE", "").strip().lower()
    if wish not in ("", "cpu", "cuda"):
        raise ConfigurationError(f"NIGHTSCORE_DEVICE is {wish!r}; allowed: cpu, cuda.")
    if wish == "cpu":
        return "cpu"
    found = has_gpu()
    if wish == "cuda" and not found:
        raise ConfigurationError("NIGHTSCORE_DEVICE is 'cuda', but torch sees no usable GPU.")
    return "cuda" if found else "cpu"


def has_gpu() -> bool:
    """Whether torch can compute on a GPU of this machine."""
    # Two seconds of every scoring task on a machine without a GPU would go into importing torch.
    if not any(driver.exists() for driver in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def profile(device: Device) -> Literal["cpu", "gpu"]:
    """The name of the training parameters for a device in `nightscore.yaml`."""
    return "cpu" if device == "cpu" else "gpu"


def has_fast_bfloat16(kind: str = "cpu") -> bool:
    """Whether this processor, or GPU (`cuda`), multiplies bfloat16 faster than float32."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
