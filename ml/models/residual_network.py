"""A small residual network for classifying small images.

A strided stem, then convolutions at half, quarter and eighth of the resolution with a residual
block (He et al., "Deep residual learning for image recognition", 2016) where pixels are few and
features many. Training uses random flips and shifted crops and label smoothing (Szegedy et al.,
2016). Which sizes cost and bring what is measured in docs/decisions/0006-architectures.md.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.models import Network

# Mean and deviation of natural photographs, close enough for any.
_MEAN, _DEVIATION = 0.46, 0.25
_SHARE_OF_SHIFT = 1 / 8
# Small logits at the start of training, which a high learning rate needs to stay stable.
_LOGIT_SCALE = 1 / 8


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
    """See the module; `width` is the number of channels of the stem, an even number."""

    def __init__(self, classes: int, width: int, smoothing: float, flips: bool) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.flips = flips
        half, quarter, eighth = 3 * width // 2, 3 * width, 6 * width
        # Halving the resolution in the first layer keeps the cost low where pixels are many.
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            *(_conv(width, half), nn.MaxPool2d(2)),
            *(_conv(half, quarter), _Block(quarter), nn.MaxPool2d(2)),
            _conv(quarter, eighth),
        )
        self.head = nn.Linear(eighth, classes, bias=False)

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
        logits: Tensor = self.head(x.amax((2, 3))) * _LOGIT_SCALE
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
