"""The training loop, the same for every architecture.

Pixels stay uint8 and are moved to the device a batch at a time (or lie there as a whole, which is
the caller's choice); augmentation and normalisation belong to the network.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ml.config.schema import Training
from ml.errors import DataError
from ml.models import Network
from ml.program.device import has_fast_bfloat16
from ml.training import memory
from ml.training.group import Group, Loss

# An epoch of a small data set has as many steps as this, so that the number of epochs means about
# the same whatever its size: from smaller batches, and where these would be too small for the
# statistics of a batch, by going through it several times.
MIN_STEPS = 30
_LEAST_BATCH = 32  # of each process
_GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Epoch:
    """How an epoch went: mean training loss, last learning rate, mean norm of the gradient before
    it is clipped, norm of the weights (L2, both), images and seconds, and what the caller's
    validation measured after it."""

    number: int
    epochs: int
    train_loss: float
    learning_rate: float
    gradient_norm: float
    weight_norm: float
    images_per_second: float
    seconds: float
    validation: dict[str, float] = field(default_factory=dict)


@memory.kept()
def fit(
    network: Network,
    pixels: Tensor,
    labels: Tensor,
    parameters: Training,
    *,
    device: torch.device,
    seed: int,
    group: Group | None = None,
    validate: Callable[[Network], dict[str, float]] = lambda network: {},
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Network:
    """Train `network` in place and return it: on the CPU, in eval mode.

    The learning rate rises linearly for the network's `warm_up` share of the steps and falls
    linearly to zero. Where the network wants it, the moving average of its weights is returned, and
    is what `validate` measures. On a CPU the same seed, data and number of threads and processes
    give the same weights to the bit.

    Args:
        pixels: uint8 (N, 3, H, W); may be a view of a memory-mapped file, it is only read.
        labels: int64 (N,).
        group: the processes that train together, each of which calls this with the same arguments;
            a batch is divided among them. None: this one alone.
        validate: measures the network after each epoch, in eval mode.

    Raises:
        DataError: there is no image, or fewer than processes; or the loss is no longer finite.
    """
    group = group or Group()
    batch_size = _batch_size(len(pixels), parameters.batch_size, group.size)
    # Each process draws its own augmentations.
    torch.manual_seed(seed + group.rank)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = max(math.ceil(len(pixels) / batch_size), MIN_STEPS)
    learning = _Learning(network, parameters, steps, group)
    order = _batches(len(pixels), batch_size, group.order(seed))
    batches = ((pixels[i].to(device), labels[i].to(device)) for i in map(group.share, order))
    for number in range(1, parameters.epochs + 1):
        started = time.perf_counter()
        loss_and_norm = learning.steps(itertools.islice(batches, steps))
        # Before the clock is read: a GPU has finished its last steps only when their loss is here.
        loss, gradient = group.mean(loss_and_norm).tolist()
        seconds = time.perf_counter() - started
        group.share_statistics(learning.result)
        if not math.isfinite(loss):
            raise DataError(
                f"The training loss is {loss} in epoch {number}.", "Lower the learning rate."
            )
        on_epoch(
            Epoch(
                number,
                parameters.epochs,
                train_loss=loss,
                learning_rate=learning.rate(),
                gradient_norm=gradient,
                weight_norm=learning.weight_norm(),
                images_per_second=steps * batch_size / seconds,
                seconds=seconds,
                validation=validate(learning.result.eval()),
            )
        )
    if learning.result is not network:
        network.load_state_dict(learning.result.state_dict())
    return network.eval().cpu()


class _Learning:
    """A network's optimizers, their schedules and its moving average, if it wants one.

    `result` is the network whose weights count, the average or the network itself.
    """

    def __init__(self, network: Network, parameters: Training, steps: int, group: Group) -> None:
        total = steps * parameters.epochs
        self._network = network
        self._optimizers = network.optimizers(parameters.learning_rate, parameters.weight_decay)
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: _triangle(step / total, network.warmup_ratio)
            )
            for optimizer in self._optimizers
        ]
        self._average = _average(network, total)
        self.result = cast(Network, self._average.module) if self._average else network
        # After the average was copied, as it may register hooks with the parameters.
        self._loss_of = group.loss_of(network)

    def steps(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """A step for each batch of images and labels; the mean loss and norm of the gradient, float
        (2,)."""
        self._network.train()
        losses_and_norms = []
        for pixels, labels in batches:
            losses_and_norms.append(
                _step(self._network, self._loss_of, pixels, labels, self._optimizers)
            )
            if self._average:
                self._average.update_parameters(self._network)
            for schedule in self._schedules:
                schedule.step()
        return torch.stack(losses_and_norms).mean(0)

    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedules[0].get_last_lr()[0])

    def weight_norm(self) -> float:
        """The norm (L2) of the weights as they are stepped."""
        weights = map(Tensor.detach, self._network.parameters())
        return float(torch.nn.utils.get_total_norm(weights))


def holdout_loss(
    network: Network, pixels: Tensor, labels: Tensor, *, seed: int, batch_size: int = 512
) -> float:
    """The mean loss of a network in training over images that it does not learn from.

    The same weights and images give the same loss whatever is drawn in it (augmentation), and
    training's own random numbers stay as they are.
    """
    device = next(network.parameters()).device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(),
        _autocast(device),
    ):
        torch.manual_seed(seed)
        # Mixed and of about the same size: a loss may need images of more than one class.
        batches = torch.randperm(len(pixels)).tensor_split(math.ceil(len(pixels) / batch_size))
        total = 0.0
        for chosen in batches:
            loss = network.loss(pixels[chosen].to(device), labels[chosen].to(device))
            total += float(loss) * len(chosen)
    return total / len(pixels)


def predict(network: Network, pixels: Tensor, batch_size: int = 512) -> Any:
    """The outputs of a network in training for all images, as numpy arrays.

    Returns:
        probabilities (N, classes), or the scores (N,) of an anomaly detector without its heat maps.
    """
    device = next(network.parameters()).device
    outputs = []
    with torch.inference_mode(), _autocast(device):
        for start in range(0, len(pixels), batch_size):
            found = network(pixels[start : start + batch_size].to(device))
            outputs.append((found[0] if isinstance(found, tuple) else found).float().cpu().numpy())
    return np.concatenate(outputs)


def _step(
    network: Network,
    loss_of: Loss,
    pixels: Tensor,
    labels: Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
) -> Tensor:
    """One step; returns the loss, and the norm of the gradient before it was clipped."""
    with _autocast(pixels.device):
        loss = loss_of(pixels, labels)
    network.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_NORM)
    for optimizer in optimizers:
        optimizer.step()
    return torch.stack([loss.detach(), norm]).float()


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device multiplies it faster than float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device.type))


def _batch_size(images: int, wanted: int, processes: int) -> int:
    """As wanted, or smaller for a small data set; the same number for each process."""
    if images == 0:
        raise DataError("There is no image to train from.")
    enough = max(math.ceil(images / MIN_STEPS), _LEAST_BATCH * processes)
    if size := min(wanted, enough, images) // processes * processes:
        return size
    raise DataError(f"A batch is smaller than the number of processes, {processes}.")


def _average(network: Network, steps: int) -> AveragedModel | None:
    """An exponential moving average of weights and statistics, if the network asks for one."""
    if not network.ema_ratio:
        return None
    decay = max(0.0, 1 - 1 / (network.ema_ratio * steps))
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _batches(count: int, size: int, order: torch.Generator | None) -> Iterator[Tensor]:
    """Indices of batches without end; each image once before any comes again."""
    rest = torch.empty(0, dtype=torch.int64)
    while True:
        while len(rest) < size:
            rest = torch.cat([rest, torch.randperm(count, generator=order)])
        yield rest[:size]
        rest = rest[size:]


def _triangle(progress: float, warm_up: float) -> float:
    return progress / warm_up if progress < warm_up else max(0.0, (1 - progress) / (1 - warm_up))
