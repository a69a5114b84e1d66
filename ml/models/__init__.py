"""The architectures. One file here is one architecture; `nightscore.yaml` names it by file name.

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


class Network(nn.Module):
    """What an architecture's `build` returns: a network that takes uint8 pixels.

    Normalisation belongs to the network, so that the exported program needs nothing around it.
    """

    # The share of the training steps in which the learning rate rises; then it falls to zero.
    warm_up = 0.2
    # The share of the training steps over which a moving average of the weights reaches back; the
    # average is what training returns. 0: the last weights are.
    averaging = 0.0

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The training loss of a batch, a scalar; augmentation happens in here, on the device.

        Args:
            pixels: uint8 (B, 3, H, W), RGB.
            labels: int64 (B,), indices into `classes`. For the task `anomaly` the classes are
                ("normal", "anomalous") and a data set may hold no anomalous image at all.
        """
        raise NotImplementedError

    def start(self, pixels: Tensor, labels: Tensor) -> None:
        """Called once before training, with fresh weights: fit what is computed from the images in
        closed form, and keep what every batch needs.

        Args:
            pixels, labels: the images to train from, as `loss` takes them, all at once: uint8 (N,
                3, H, W), perhaps a memory-mapped file. The network is on the CPU.
        """

    def finish(self, pixels: Tensor, labels: Tensor) -> None:
        """Called once when the weights are final, on the CPU and in eval mode, with what `start`
        was given: fit what is computed from the weights in closed form, and forget the images."""

    def calibrate(self, pixels: Tensor, labels: Tensor) -> None:
        """Called once after `finish` with the held-out images, which no weight has learned from:
        fit what makes the outputs probabilities, and nothing that changes their order."""

    def optimizers(self, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
        """How the weights are changed, an optimizer for each kind of them; AdamW unless overridden.
        The learning rate of the first is the one that is reported."""
        return [torch.optim.AdamW(self.parameters(), learning_rate, weight_decay=weight_decay)]

    def forward(self, pixels: Tensor) -> Any:
        """The outputs that are stored.

        classification: float32 (B, classes), probabilities that sum to 1.
        anomaly: float32 (B,), the score in [0, 1], larger is more anomalous; float32 (B, h, w), the
        heat map in [0, 1], as coarse as the network makes it; and, if the network has one, float32
        (B,), the novelty in [0, 1], larger is less like anything seen.
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
    """The SHA-256 of a network's weights and statistics: the same when they are, to the bit.

    The file of an exported program also holds the paths and lines of the code it was traced from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
