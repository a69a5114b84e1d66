"""The device to compute on."""

import os
from pathlib import Path
from typing import Literal

from ml.errors import ConfigurationError

Device = Literal["cpu", "cuda"]

# Device files of NVIDIA's driver on Linux, and of the Windows subsystem for Linux.
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def select_device() -> Device:
    """Return `cuda` if there is a usable GPU, else `cpu`; `NIGHTSCORE_DEVICE` overrides.

    Raises:
        ConfigurationError: `NIGHTSCORE_DEVICE` is neither cpu nor cuda, or there is no such device.
    """
    requested = os.environ.get("NIGHTSCORE_DEVICE", "").strip().lower()
    if requested not in ("", "cpu", "cuda"):
        raise ConfigurationError(f"NIGHTSCORE_DEVICE is {requested!r}; allowed: cpu, cuda.")
    if requested == "cpu":
        return "cpu"
    if has_gpu():
        return "cuda"
    if requested == "cuda":
        raise ConfigurationError("NIGHTSCORE_DEVICE is 'cuda', but torch sees no usable GPU.")
    return "cpu"


def has_gpu() -> bool:
    """Return whether torch can compute on a GPU of this machine."""
    # Importing torch would take two seconds of every scoring task on a machine without a GPU.
    if not any(driver.exists() for driver in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def profile(device: Device) -> Literal["cpu", "gpu"]:
    """Return the name of a device's training parameters in `nightscore.yaml`."""
    return "cpu" if device == "cpu" else "gpu"


def has_fast_bfloat16(device_type: str = "cpu") -> bool:
    """Return whether this processor, or GPU (`cuda`), multiplies bfloat16 faster than float32."""
    import torch

    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
