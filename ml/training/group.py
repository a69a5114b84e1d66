"""The processes that train one network together: usually one, or several of one machine.

Each process takes a part of every batch and has its own copy of the weights. The gradients are
averaged before each step, so that the copies stay equal: data parallelism (Li et al., "PyTorch
distributed", 2020, arXiv:2006.15704).
"""

from collections.abc import Callable
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ml.models import Network

LossFunction = Callable[[Tensor, Tensor], Tensor]
# The others wait while one process validates. That one has died is noticed by other means.
_TIMEOUT = timedelta(hours=2)


class Group:
    """A single process.

    Attributes:
        rank: the number of this process, from 0.
        world_size: the number of processes.
    """

    rank = 0
    world_size = 1

    def shuffle_generator(self, seed: int) -> torch.Generator | None:
        """What shuffles the images, equal in all processes; None: torch's global generator."""
        return None

    def shard_batch(self, indices: Tensor) -> Tensor:
        """This process's part of a batch."""
        return indices

    def loss_function(self, network: Network) -> LossFunction:
        """The loss of this process's part of a batch; its gradients are averaged over the group."""
        return network.loss

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """The mean over the processes of each one's `value`."""
        return value

    def sync_batchnorm_stats(self, network: Network) -> None:
        """Set the running statistics of batch normalization to their mean over the processes."""


class ProcessGroup(Group):
    """One of several processes that torchrun started; `close` leaves the group.

    Batch normalization uses the statistics of this process's part of a batch, on every device. Its
    running statistics, which scoring uses, are averaged after each epoch.

    Args:
        device: where this process trains.
    """

    def __init__(self, device: torch.device) -> None:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = device

    def shuffle_generator(self, seed: int) -> torch.Generator | None:
        """See `Group.shuffle_generator`."""
        return torch.Generator().manual_seed(seed)

    def shard_batch(self, indices: Tensor) -> Tensor:
        """See `Group.shard_batch`."""
        return indices[self.rank :: self.world_size]

    def loss_function(self, network: Network) -> LossFunction:
        """See `Group.loss_function`."""
        return nn.parallel.DistributedDataParallel(_LossModule(network), broadcast_buffers=False)

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """See `Group.all_reduce_mean`."""
        total = value.to(self._device, copy=True)
        dist.all_reduce(total)
        return total / self.world_size

    def sync_batchnorm_stats(self, network: Network) -> None:
        """See `Group.sync_batchnorm_stats`."""
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for statistic in (layer.running_mean, layer.running_var):
                    if statistic is not None:
                        statistic.copy_(self.all_reduce_mean(statistic))

    def close(self) -> None:
        """Leave the group, after all processes have come here."""
        dist.barrier()
        dist.destroy_process_group()


class _LossModule(nn.Module):
    """A network whose `forward` is its loss, as only the gradients of `forward` are averaged."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return self.network.loss(pixels, labels)
