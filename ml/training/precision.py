"""How precisely the parts of a training compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ml.program.device import has_fast_bfloat16
from ml.program.precision import tf32


def autocast(device: torch.device) -> torch.autocast:
    """A context that computes in bfloat16 where the device multiplies it faster than float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device.type))


@contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Compute in float32, without TF32: what is fitted in closed form, scores for thresholds."""
    with tf32(allowed=False), torch.autocast(device.type, enabled=False):
        yield
