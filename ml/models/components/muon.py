"""Muon, an optimizer for weights that are matrices.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024
(https://kellerjordan.github.io/posts/muon/): a step follows the momentum of the gradient, whose
singular values are first made about equal. A few Newton-Schulz iterations do that with matrix
products alone.

`torch.optim.Muon` always computes them in bfloat16. A processor without bfloat16 instructions then
needs eleven times as long as in float32 (0.83 s instead of 0.08 s for a step of
`cifar10-classifier` on 2 cores with AVX2). So this one computes in the type that the device
multiplies fastest. In bfloat16 its steps are those of torch to the bit.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ml.program.device import has_fast_bfloat16

# Each iteration applies the polynomial a x + b x^3 + c x^5 to the singular values. Its slope at
# zero is steep, so that small ones grow in few iterations (from the source above).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_MIN_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized, with decoupled weight decay.

    Args:
        matrices: parameters of two dimensions, float32.
        learning_rate: of a square matrix; a tall one takes larger steps.
        weight_decay: relative to the learning rate.
        momentum: decay of the moving average of the gradient.
        iterations: the number of Newton-Schulz iterations.
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
        """Update each matrix that has a gradient; `closure` is not called."""
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
        step_size = group["lr"] * math.sqrt(max(1, rows / columns))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(orthogonalize(direction, group["iterations"]), alpha=-step_size)


def orthogonalize(matrix: Tensor, iterations: int, dtype: torch.dtype | None = None) -> Tensor:
    """Set the singular values of a matrix to about one; its singular vectors stay.

    Args:
        matrix: float32 (N, M).
        iterations: the number of Newton-Schulz iterations.
        dtype: the type to compute in, and of the result; None: the fastest on the matrix's device.

    Returns:
        A new matrix (N, M).
    """
    x = matrix.to(dtype or _fastest_dtype(matrix.device))
    is_tall = matrix.size(0) > matrix.size(1)
    if is_tall:
        x = x.T
    x = x / x.norm().clamp(min=_MIN_NORM)
    for _ in range(iterations):
        gram = x @ x.T
        factor = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
        x = torch.addmm(x, factor, x, beta=_A)
    return x.T if is_tall else x


def _fastest_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if has_fast_bfloat16(device.type) else torch.float32
