"""An exponential moving average (EMA) of a network's weights and buffers.

`torch.optim.swa_utils.AveragedModel` counts its updates in a tensor on the CPU and copies it to the
device in each of them, which waits for the device. Hence this one, with torch's own kernel.
"""

import copy
import itertools

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ml.models import Network


class MovingAverage:
    """A copy of a network that follows it.

    Args:
        network: the network that is trained, on its device.
        decay: the weight of the past, in [0, 1]; the first update counts wholly.

    Attributes:
        network: the network with the averaged weights.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self._update_floats = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._is_first = True

    @torch.no_grad()
    def update(self) -> None:
        """Take one more step of the network into account; what is not a float is copied."""
        if self._is_first:
            _copy(self._floats)
            self._is_first = False
        else:
            averages, latest = map(list, zip(*self._floats, strict=True))
            self._update_floats(averages, latest, None)
        _copy(self._others)


def _tensors(network: Network) -> list[Tensor]:
    return list(itertools.chain(network.parameters(), network.buffers()))


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source)
