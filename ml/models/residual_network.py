"""A small residual network for classifying small images.

Three stages of residual blocks with batch normalisation (He et al., "Identity mappings in deep
residual networks", 2016), at full, half and quarter resolution, then an average over what is left
of the image. Training uses random flips and shifted crops and label smoothing (Szegedy et al.,
2016).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.models import Network

# Mean and deviation of natural photographs, close enough for any.
_MEAN, _DEVIATION = 0.46, 0.25
_SHARE_OF_SHIFT = 1 / 8


class _Block(nn.Module):
    """conv - norm - relu, twice, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ResidualNetwork(Network):
    """See the module; `width` is the number of channels of the first stage."""

    def __init__(self, classes: int, width: int, smoothing: float, flips: bool) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.flips = flips
        # Halving the resolution before widening keeps the cost low where pixels are many.
        self.stem = nn.Sequential(_conv(3, width), nn.MaxPool2d(2))
        self.stages = nn.Sequential(
            *(_conv(width, 2 * width), nn.MaxPool2d(2), _Block(2 * width)),
            *(_conv(2 * width, 4 * width), nn.MaxPool2d(2), _Block(4 * width)),
        )
        self.head = nn.Linear(4 * width, classes)

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            self._logits(shifted(pixels, self.flips)), labels, label_smoothing=self.smoothing
        )

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self._logits(pixels)
        if self.flips:
            # What a mirror image shows is the same; the mean of both views errs less.
            logits = (logits + self._logits(pixels.flip(-1))) / 2
        return logits.float().softmax(1)

    def _logits(self, pixels: Tensor) -> Tensor:
        x = (pixels.float() / 255 - _MEAN) / _DEVIATION
        x = self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))
        # The strongest answer of each feature, wherever it is in the image.
        logits: Tensor = self.head(x.amax((2, 3)))
        return logits


def shifted(pixels: Tensor, flips: bool) -> Tensor:
    """Each image moved by up to an eighth of its size, mirrored at the borders, and half of the
    images flipped; uint8 (B, 3, H, W) in and out."""
    count, _, height, width = pixels.shape
    rows = _places(count, height, pixels.device)
    columns = _places(count, width, pixels.device)
    if flips:
        flipped = torch.rand(count, 1, device=pixels.device) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    images = torch.arange(count, device=pixels.device)[:, None, None]
    # Indexing around the channels gives (B, H, W, 3), which is channels_last already.
    return pixels[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _places(count: int, size: int, device: torch.device) -> Tensor:
    """For each image the rows (or columns) it is read from, int64 (B, size)."""
    most = max(1, round(size * _SHARE_OF_SHIFT))
    shift = torch.randint(-most, most + 1, (count, 1), device=device)
    places = torch.arange(size, device=device) + shift
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def build(size: tuple[int, int], classes: tuple[str, ...], options: dict[str, Any]) -> Network:
    """`options`: width (32), smoothing (0.1), flips (true: a mirrored image means the same)."""
    defaults = {"width": 32, "smoothing": 0.1, "flips": True}
    if unknown := set(options) - set(defaults):
        raise TypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(defaults)}")
    return ResidualNetwork(len(classes), **(defaults | options))
