"""The state of a training: the network, its optimizers, their schedules, the moving average."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ml.config.schema import Training
from ml.models import Network
from ml.training.batches import Batch
from ml.training.ema import MovingAverage
from ml.training.group import Group
from ml.training.precision import autocast

_MAX_GRADIENT_NORM = 5.0


class TrainState:
    """A network with its optimizers, their schedules and, if it wants one, its moving average.

    Args:
        network: the network that is trained, on its device.
        parameters: learning rate, weight decay and number of epochs.
        steps: the number of steps of an epoch.
        group: the processes that train together.

    Attributes:
        result: the network that is validated and returned: the moving average of the weights, or
            the trained network itself.
    """

    def __init__(self, network: Network, parameters: Training, steps: int, group: Group) -> None:
        total_steps = steps * parameters.epochs
        self._network = network
        self._optimizers = network.optimizers(parameters.learning_rate, parameters.weight_decay)
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: _triangular(step / total_steps, network.warmup_ratio)
            )
            for optimizer in self._optimizers
        ]
        self._ema = _make_ema(network, total_steps)
        self.result = self._ema.network if self._ema else network
        # Last, as it may register hooks with the parameters, which the average must not copy.
        self._loss_function = group.loss_function(network)

    def train_epoch(self, batches: Iterable[Batch]) -> Tensor:
        """Take a step for each batch of images and labels, without waiting for the device.

        Returns:
            The mean loss and the mean norm of the gradient before it is clipped, float32 (2,), on
            the device.
        """
        self._network.train()
        losses_and_norms = []
        for pixels, labels in batches:
            losses_and_norms.append(self._step(pixels, labels))
            if self._ema:
                self._ema.update()
            for schedule in self._schedules:
                schedule.step()
        return torch.stack(losses_and_norms).mean(0)

    def _step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Update the weights; returns the loss and the norm of the gradient, float32 (2,)."""
        with autocast(pixels.device):
            loss = self._loss_function(pixels, labels)
        self._network.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), _MAX_GRADIENT_NORM)
        for optimizer in self._optimizers:
            optimizer.step()
        return torch.stack([loss.detach(), norm]).float()

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedules[0].get_last_lr()[0])

    def weight_norm(self) -> float:
        """The L2 norm of the weights that are trained, not of their average."""
        weights = map(Tensor.detach, self._network.parameters())
        return float(torch.nn.utils.get_total_norm(weights))


def _make_ema(network: Network, steps: int) -> MovingAverage | None:
    """An exponential moving average of weights and buffers, if the network wants one."""
    if not network.ema_ratio:
        return None
    return MovingAverage(network, decay=max(0.0, 1 - 1 / (network.ema_ratio * steps)))


def _triangular(progress: float, warmup_ratio: float) -> float:
    """The share of the learning rate at a share of the steps: up to 1, then down to 0."""
    if progress < warmup_ratio:
        return progress / warmup_ratio
    return max(0.0, (1 - progress) / (1 - warmup_ratio))
