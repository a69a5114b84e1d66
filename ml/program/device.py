"""The device to compute on."""

import os
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ml.errors import ConfigurationError
from ml.program import gpu_claim

Device = Literal["cpu", "cuda"]

VARIABLE = "NIGHTSCORE_DEVICE"
# Device files of NVIDIA's driver on Linux, and of the Windows subsystem for Linux.
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


@dataclass(frozen=True, slots=True)
class RequestedDevice:
    """What `NIGHTSCORE_DEVICE` asks for.

    Attributes:
        device: `cpu` or `cuda`; None to select automatically.
        index: The index of the GPU, as in `cuda:1`; None for any.
    """

    device: Device | None
    index: int | None = None


def requested_device() -> RequestedDevice:
    """Return what `NIGHTSCORE_DEVICE` asks for.

    Raises:
        ConfigurationError: It is none of cpu, cuda and cuda:N.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value == "":
        return RequestedDevice(None)
    if value == "cpu":
        return RequestedDevice("cpu")
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", value, re.ASCII)
    if match is None:
        raise ConfigurationError(f"{VARIABLE} is {value!r}; allowed: cpu, cuda, cuda:N.")
    return RequestedDevice("cuda", None if match[1] is None else int(match[1]))


def select_device(*, all_gpus: bool = False) -> Device:
    """Return `cuda` if there is a usable GPU, else `cpu`; `NIGHTSCORE_DEVICE` overrides.

    On a machine with several GPUs, the first call in a process claims one of them for the process,
    which then sees no other (`ml.program.gpu_claim`).

    Args:
        all_gpus: Whether this process, or those that it starts, use all GPUs, so none is claimed.

    Raises:
        ConfigurationError: `NIGHTSCORE_DEVICE` is wrong, or there is no such device.
    """
    requested = requested_device()
    if requested.device == "cpu":
        return "cpu"
    _claim(requested, all_gpus)
    if has_gpu():
        return "cuda"
    if requested.device == "cuda":
        raise ConfigurationError(f"{VARIABLE} is 'cuda', but torch sees no usable GPU.")
    return "cpu"


def _claim(requested: RequestedDevice, all_gpus: bool) -> None:
    """Claim a GPU, before `has_gpu` lets CUDA read which GPUs this process may see."""
    if requested.index is None and all_gpus:
        gpu_claim.use_all_gpus()
        return
    gpus = count_gpus()
    if requested.index is not None and requested.index >= gpus > 0:
        raise ConfigurationError(
            f"{VARIABLE} is 'cuda:{requested.index}', but this process sees {gpus} GPUs.",
            f"The last one is cuda:{gpus - 1}.",
        )
    gpu_claim.claim_gpu(gpus, requested.index)
    if requested.index is not None and gpus > 0:
        # This process, and those that it starts, see one GPU now, and its index is 0.
        os.environ[VARIABLE] = "cuda"


def usable_gpus() -> int:
    """Return how many GPUs the processes of this machine spread over, as `NIGHTSCORE_DEVICE` says.

    Raises:
        ConfigurationError: `NIGHTSCORE_DEVICE` is wrong.
    """
    requested = requested_device()
    if requested.device == "cpu":
        return 0
    return count_gpus() if requested.index is None else 1


def count_gpus() -> int:
    """Return the number of GPUs that this process sees, without initialising CUDA."""
    if not _can_use_gpus():
        return 0
    import torch

    return torch.cuda.device_count()


def has_gpu() -> bool:
    """Return whether torch can compute on a GPU of this machine."""
    if not _can_use_gpus():
        return False
    import torch

    return torch.cuda.is_available()


def _can_use_gpus() -> bool:
    """Whether there is a driver, and torch to use it; scorers on CPUs have no torch."""
    # Importing torch would take two seconds of every scoring task on a machine without a GPU.
    return any(driver.exists() for driver in _DRIVERS) and find_spec("torch") is not None


def is_gpu_broken() -> bool:
    """Return whether this process can no longer use its GPU: an error in a kernel is for good."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def device_name(device: Device) -> str:
    """Return `cpu`, or the name and UUID of the GPU that this process uses.

    The UUID tells the GPUs of all machines apart, whatever index a process sees them by.
    """
    if device == "cpu":
        return "cpu"
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.name} (GPU-{properties.uuid})"


def profile(device: Device) -> Literal["cpu", "gpu"]:
    """Return the name of a device's training parameters in `nightscore.yaml`."""
    return "cpu" if device == "cpu" else "gpu"


def has_fast_bfloat16(device_type: str = "cpu") -> bool:
    """Return whether this processor, or GPU (`cuda`), multiplies bfloat16 faster than float32."""
    import torch

    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
