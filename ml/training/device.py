"""Where to compute."""

import os
from typing import Literal

import torch

from ml.errors import ConfigurationError


def choose() -> torch.device:
    """CUDA when there is a usable GPU, else the CPU; `NIGHTSCORE_DEVICE` (cpu, cuda) overrides.

    Raises ConfigurationError when the device asked for is not there.
    """
    wish = os.environ.get("NIGHTSCORE_DEVICE", "").strip().lower()
    if wish not in ("", "cpu", "cuda"):
        raise ConfigurationError(f"NIGHTSCORE_DEVICE is {wish!r}; allowed: cpu, cuda.")
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("NIGHTSCORE_DEVICE is 'cuda', but torch sees no usable GPU.")
    return torch.device(wish or ("cuda" if torch.cuda.is_available() else "cpu"))


def profile(device: torch.device) -> Literal["cpu", "gpu"]:
    """The name of the training parameters for a device in `nightscore.yaml`."""
    return "cpu" if device.type == "cpu" else "gpu"
