"""The training loop, the same for every architecture.

Pixels stay uint8; `ml.training.batches` brings them to the device. Augmentation and normalization
belong to the network. Nothing in an epoch waits for the device, before its loss is read.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ml.config.schema import Training
from ml.errors import DataError
from ml.models import Network
from ml.training.batches import Batches, select_batches
from ml.training.group import Group
from ml.training.memory import retain_freed_memory
from ml.training.train_state import TrainState

# An epoch of a small data set has at least this many steps, so that the number of epochs means
# about the same for any size. Its batches are smaller; where that would make them too small for
# batch statistics, an epoch goes through the data set several times.
MIN_STEPS = 30
_MIN_BATCH = 32  # of each process


@dataclass(frozen=True)
class Epoch:
    """The measurements of an epoch.

    Attributes:
        number: counted from 1.
        epochs: how many epochs there will be.
        train_loss: the mean training loss.
        learning_rate: after the last step.
        gradient_norm: the mean L2 norm of the gradient, before it is clipped.
        weight_norm: the L2 norm of the weights.
        images_per_second: training images.
        seconds: of training, without validation.
        validation: the metrics that the caller's `validate` returned.
    """

    number: int
    epochs: int
    train_loss: float
    learning_rate: float
    gradient_norm: float
    weight_norm: float
    images_per_second: float
    seconds: float
    validation: dict[str, float] = field(default_factory=dict)


@retain_freed_memory()
def fit(
    network: Network,
    pixels: Tensor,
    labels: Tensor,
    parameters: Training,
    *,
    device: torch.device,
    seed: int,
    group: Group | None = None,
    images: Batches | None = None,
    validate: Callable[[Network], dict[str, float]] = lambda network: {},
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Network:
    """Train a network in place, on those of the images that its `train_indices` select.

    The learning rate rises linearly during the network's `warmup_ratio` of the steps and then falls
    linearly to zero. If the network has an `ema_ratio`, its weights become their moving average,
    which is also what `validate` measures. On a CPU the same seed, data and number of threads and
    of processes give the same weights to the bit.

    Args:
        network: the network, after `before_fit`, for which it has to be on `device` already.
        pixels: uint8 (N, 3, H, W), on the CPU; may be a view of a memory-mapped file, as it is only
            read.
        labels: int64 (N,), on the CPU.
        parameters: epochs, batch size, learning rate and weight decay.
        device: where to train.
        seed: of the order of the images and of the augmentation.
        group: the processes that train together: each calls this function with the same arguments
            and gets a part of each batch. None: this process alone.
        images: the way of the pixels and labels to the device; None: that of `select_batches`.
        validate: measures the network after each epoch, in eval mode.
        on_epoch: is called after each epoch.

    Returns:
        `network`, on `device` and in eval mode.

    Raises:
        DataError: there is no image, or there are fewer images than processes; or the loss is not
            finite.
    """
    group = group or Group()
    rows = network.train_indices(labels)
    batch_size = _batch_size(len(rows), parameters.batch_size, group.world_size)
    # Each process makes its own augmentations.
    torch.manual_seed(seed + group.rank)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = max(math.ceil(len(rows) / batch_size), MIN_STEPS)
    state = TrainState(network, parameters, steps, group)
    images = images or select_batches(pixels, labels, device)
    order = _batch_indices(len(rows), batch_size, _order_generator(group, seed, images))
    indices = (rows[group.shard_batch(batch)] for batch in order)
    with closing(images.gather(indices)) as batches:
        for number in range(1, parameters.epochs + 1):
            start = time.perf_counter()
            loss_and_norm = state.train_epoch(itertools.islice(batches, steps))
            # Read before the clock: only when it has the loss has a GPU finished its last steps.
            loss, gradient_norm = group.all_reduce_mean(loss_and_norm).tolist()
            seconds = time.perf_counter() - start
            group.sync_batchnorm_stats(state.result)
            _check_finite(loss, number)
            on_epoch(
                Epoch(
                    number,
                    parameters.epochs,
                    train_loss=loss,
                    learning_rate=state.learning_rate(),
                    gradient_norm=gradient_norm,
                    weight_norm=state.weight_norm(),
                    images_per_second=steps * batch_size / seconds,
                    seconds=seconds,
                    validation=validate(state.result.eval()),
                )
            )
    if state.result is not network:
        network.load_state_dict(state.result.state_dict())
    return network.eval()


def _order_generator(group: Group, seed: int, images: Batches) -> torch.Generator | None:
    """Return what draws the order of the images; None for torch's global generator."""
    generator = group.shuffle_generator(seed)
    if generator is None and images.is_early:
        # The global one would give other augmentations, depending on how early indices are drawn.
        return torch.Generator().manual_seed(seed)
    return generator


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise DataError(
            f"The training loss is {loss} in epoch {epoch}.", "Lower the learning rate."
        )


def _batch_size(images: int, configured: int, processes: int) -> int:
    """The configured size, or a smaller one for a small data set; a multiple of `processes`."""
    if images == 0:
        raise DataError("There is no image to train from.")
    small = max(math.ceil(images / MIN_STEPS), _MIN_BATCH * processes)
    if size := min(configured, small, images) // processes * processes:
        return size
    raise DataError(f"A batch is smaller than the number of processes, {processes}.")


def _batch_indices(
    images: int, batch_size: int, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Indices of one batch after the other, without end; each image once in every round."""
    remaining = torch.empty(0, dtype=torch.int64)
    while True:
        while len(remaining) < batch_size:
            remaining = torch.cat([remaining, torch.randperm(images, generator=generator)])
        yield remaining[:batch_size]
        remaining = remaining[batch_size:]
