"""Muon, an optimizer for weights that are matrices.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024
(https://kellerjordan.github.io/posts/muon/): a step goes along the momentum of the gradient with
all its singular values made about equal, which a few Newton-Schulz iterations do with matrix
products alone.

torch.optim.Muon computes them in bfloat16 everywhere. For that a processor without bfloat16 takes
eleven times as long as in float32 (0.83 instead of 0.08 s for a step of `cifar10-classifier` on 2
cores with AVX2), so here the type is what the device multiplies fastest. In bfloat16 the steps are
torch's to the bit.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ml.program.device import has_fast_bfloat16

# Of the polynomial a x + b x^3 + c x^5 that each iteration applies to the singular values; its
# slope at zero is steep, so that small ones grow in few iterations (from the source above).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; decoupled weight decay.

    Args:
        matrices: parameters of two dimensions, float32.
        iterations: of Newton-Schulz.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        learning_rate: float,
        *,
        weight_decay: float,
        momentum: float,
        iterations: int,
    ) -> None:
        defaults = {
            "lr": learning_rate,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "iterations": iterations,
        }
        super().__init__(matrices, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change each matrix that has a gradient; `closure` is not called."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._step(matrix, matrix.grad, group)

    def _step(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(average, group["momentum"])
        rows, columns = matrix.shape
        rate = group["lr"] * math.sqrt(max(1, rows / columns))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(orthogonal(direction, group["iterations"]), alpha=-rate)


def orthogonal(matrix: Tensor, iterations: int, dtype: torch.dtype | None = None) -> Tensor:
    """A matrix with the singular vectors of `matrix` and singular values of about one.

    Args:
        matrix: float32 (N, M).
        dtype: to compute in, and of what is returned; None: what the matrix's device is fastest in.

    Returns:
        (N, M).
    """
    x = matrix.to(dtype or _fastest(matrix.device))
    is_tall = matrix.size(0) > matrix.size(1)
    if is_tall:
        x = x.T
    x = x / x.norm().clamp(min=_LEAST_NORM)
    for _ in range(iterations):
        squared = x @ x.T
        factor = torch.addmm(squared, squared, squared, beta=_B, alpha=_C)
        x = torch.addmm(x, factor, x, beta=_A)
    return x.T if is_tall else x


def _fastest(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if has_fast_bfloat16(device.type) else torch.float32
