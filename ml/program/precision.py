"""How precisely a program, or a training, computes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ml.errors import ConfigurationError

# The largest difference of outputs, which are in [0, 1], from torch's outputs in float32. TF32 has
# a mantissa of 10 bits, bfloat16 one of 7.
TOLERANCE = {"float32": 1e-4, "tf32": 0.0125, "bfloat16": 0.1}


def requested_precision() -> str:
    """Return `NIGHTSCORE_PRECISION`: float32, the default, tf32 or bfloat16.

    A processor without instructions for the requested type computes in float32. Only GPUs compute
    in TF32.

    Raises:
        ConfigurationError: It is something else.
    """
    value = os.environ.get("NIGHTSCORE_PRECISION", "").strip().lower() or "float32"
    if value not in TOLERANCE:
        allowed = ", ".join(TOLERANCE)
        raise ConfigurationError(f"NIGHTSCORE_PRECISION is {value!r}; allowed: {allowed}.")
    return value


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in the convolutions and matrix products that are launched meanwhile.

    The setting is one of the process. torch reads it when a kernel is launched, so threads that
    need different settings must launch one after the other.
    """
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
