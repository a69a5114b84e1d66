"""The processes that train one network together: usually one, or several of one machine.

Each takes its share of every batch and has weights of its own; the gradients are averaged before
each step, so that the weights stay the same (data parallelism; Li et al., "PyTorch distributed",
2020, arXiv:2006.15704).
"""

from collections.abc import Callable
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ml.models import Network

Loss = Callable[[Tensor, Tensor], Tensor]
# While one process measures the network the others wait; one that died is noticed otherwise.
_PATIENCE = timedelta(hours=2)


class Group:
    """A process that trains alone. `rank` counts the processes from 0; `size` is their number."""

    rank = 0
    size = 1

    def order(self, seed: int) -> torch.Generator | None:
        """What shuffles the images, the same for every process; None is torch's own generator."""
        return None

    def share(self, chosen: Tensor) -> Tensor:
        """This process's part of a batch."""
        return chosen

    def loss_of(self, network: Network) -> Loss:
        """The network's loss of this process's part; its gradients become those of the group."""
        return network.loss

    def mean(self, value: Tensor) -> Tensor:
        """The mean of what each process has."""
        return value

    def share_statistics(self, network: Network) -> None:
        """Give the normalisation layers of every process the mean of their running statistics."""


class Processes(Group):
    """One of several, in a process that torchrun started; leave with `close`.

    A normalisation layer uses the statistics of this process's part of a batch, on every device;
    its running statistics, with which images are scored, are averaged after each epoch.
    """

    def __init__(self, device: torch.device) -> None:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = device

    def order(self, seed: int) -> torch.Generator | None:
        return torch.Generator().manual_seed(seed)

    def share(self, chosen: Tensor) -> Tensor:
        return chosen[self.rank :: self.size]

    def loss_of(self, network: Network) -> Loss:
        return nn.parallel.DistributedDataParallel(_Loss(network), broadcast_buffers=False)

    def mean(self, value: Tensor) -> Tensor:
        total = value.to(self._device, copy=True)
        dist.all_reduce(total)
        return total / self.size

    def share_statistics(self, network: Network) -> None:
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for statistic in (layer.running_mean, layer.running_var):
                    if statistic is not None:
                        statistic.copy_(self.mean(statistic))

    def close(self) -> None:
        """Leave the group, all at the same time."""
        dist.barrier()
        dist.destroy_process_group()


class _Loss(nn.Module):
    """A network whose `forward` is its loss: only what forward computes is averaged."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return self.network.loss(pixels, labels)
