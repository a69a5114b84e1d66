"""AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019)."""

from collections.abc import Iterable

import torch
from torch import Tensor


def adamw(
    weights: Iterable[Tensor],
    learning_rate: float,
    *,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """Return AdamW for some weights; on a GPU one kernel updates all of them.

    Args:
        weights: on the device that trains.
        learning_rate: the largest one.
        weight_decay: relative to the learning rate.
        betas: the decays of the moving averages of the gradient and of its square.
    """
    weights = list(weights)
    fused = all(weight.is_cuda for weight in weights) or None  # None: torch's default
    return torch.optim.AdamW(
        weights, learning_rate, betas=betas, weight_decay=weight_decay, fused=fused
    )
