"""The neural networks: one file here is one architecture, which `nightscore.yaml` names.

A file offers one function::

    def build(size: tuple[int, int], classes: tuple[str, ...], **options) -> Network

and declares its options in a constant `OPTIONS` (`ml.config.architectures` says how). Its network
does two things: `loss` for training and `forward` for scoring. The training loop
(`ml.training.loop`), the export and everything behind them are the same for all architectures.
"""

import hashlib
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ml.config.architectures import architectures, complete_options
from ml.errors import ConfigurationError
from ml.models.components.adamw import adamw


class Network(nn.Module):
    """A network as an architecture's `build` returns it; it takes uint8 pixels.

    Normalization belongs to the network, so that the exported program needs no preprocessing.
    Training calls, in this order, `before_fit`, `loss` for each batch, `after_fit`, `calibrate`,
    all with the network on the device that trains (`device`). Then the network goes to the CPU,
    where it is exported. The batches of `loss` and `forward` are on the device. Those methods that
    take all images get them on the CPU, and bring what they use to the device, batch by batch.
    """

    # The share of the training steps in which the learning rate rises; then it falls to zero.
    warmup_ratio = 0.2
    # Over which share of the training steps the exponential moving average (EMA) of the weights
    # reaches back; training returns the average. 0: training returns the last weights.
    ema_ratio = 0.0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def train_indices(self, labels: Tensor) -> Tensor:
        """Return which images batches are made of; all, unless overridden.

        Args:
            labels: int64 (N,), on the CPU.

        Returns:
            Indices, int64 (M,), ascending.
        """
        return torch.arange(len(labels))

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Compute the training loss of a batch, a scalar; this includes the augmentation.

        It should not wait for the device: no `item`, no boolean mask as an index, no tensor from a
        list (`tests/unit/training/test_synchronization.py` shows what does).

        Args:
            pixels: uint8 (B, 3, H, W), RGB, of images of `train_indices`.
            labels: int64 (B,), indices into `classes`. For the task `anomaly` the classes are
                ("normal", "anomalous"); a data set may have no anomalous image at all.
        """
        raise NotImplementedError

    def before_fit(self, pixels: Tensor, labels: Tensor) -> None:
        """Compute what is fitted in closed form, and keep what every batch needs.

        It is called once, with fresh weights, and computes in float32.

        Args:
            pixels: uint8 (N, 3, H, W), all training images, on the CPU; may be a memory-mapped
                file.
            labels: int64 (N,), on the CPU.
        """

    def after_fit(self, pixels: Tensor, labels: Tensor) -> None:
        """Compute what is fitted to the final weights in closed form, and forget the images.

        It is called once, in eval mode, and computes in float32.

        Args:
            pixels: as for `before_fit`.
            labels: as for `before_fit`.
        """

    def calibrate(self, pixels: Tensor, labels: Tensor) -> None:
        """Fit what makes the outputs probabilities, without changing their order.

        It is called once, after `after_fit`, and computes in float32.

        Args:
            pixels: uint8 (N, 3, H, W), the held-out images, which no weight was trained on, on the
                CPU.
            labels: int64 (N,), on the CPU.
        """

    def optimizers(self, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
        """The optimizers, each for a part of the weights; AdamW for all unless overridden.

        The learning rate of the first one is reported.
        """
        return [adamw(self.parameters(), learning_rate, weight_decay=weight_decay)]

    def forward(self, pixels: Tensor) -> Any:
        """Compute the outputs of a batch.

        Args:
            pixels: uint8 (B, 3, H, W), RGB.

        Returns:
            For the task `classification`: probabilities, float32 (B, classes), which sum to 1.
            For `anomaly` a tuple: the score, float32 (B,) in [0, 1], larger is more anomalous; the
            anomaly map, float32 (B, h, w) in [0, 1], of any resolution; and, if the network
            measures it, the novelty, float32 (B,) in [0, 1], larger is less like the training
            images.
        """
        raise NotImplementedError


def build(
    name: str, size: tuple[int, int], classes: tuple[str, ...], options: dict[str, Any]
) -> Network:
    """Return the network of an architecture, with fresh weights.

    Args:
        name: Name of a file of this folder.
        size: Height and width of the images in pixels.
        classes: Names of the classes.
        options: Options that differ from their defaults.

    Raises:
        ConfigurationError: There is no such file, an option is unknown, or its value not allowed.
    """
    if name not in architectures():
        raise ConfigurationError(
            f"There is no architecture {name!r}.", f"Known: {', '.join(architectures())}."
        )
    complete = complete_options(name, options)
    network: Network = import_module(f"ml.models.{name}").build(size, classes, **complete)
    return network


def weights_sha256(network: nn.Module) -> str:
    """The SHA-256 of a network's weights and buffers, equal only if these are equal to the bit.

    The hash of an exported program would not do: its file also has paths and line numbers of the
    code that it was traced from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
