"""A detector that knows normal images only: the baseline that others are compared with.

A convolutional autoencoder with channel attention (squeeze-and-excitation, Hu et al., 2018,
arXiv:1709.01507) squeezes an image through a few numbers and draws it again. It learns to do so for
normal images, so what it draws badly is unusual: the squared error of each pixel is the heat map,
the mean of the largest of them the score. Anomalous images are never trained from, known ones
neither. Light augmentation: normal images are mirrored and made a little lighter or darker.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.models import Network

OPTIONS = {
    # Channels at half of the resolution.
    "width": {"type": "int", "default": 16, "minimum": 1},
    # Numbers that remain of each 8 x 8 pixels.
    "bottleneck": {"type": "int", "default": 16, "minimum": 1},
    # Share of the heat map's pixels, those with the largest errors, whose mean is the score.
    "share": {"type": "float", "default": 0.05, "minimum": 0, "maximum": 1},
}

# What is as unusual as the worst hundredth of the normal training images gets a score of 1/2.
_SCALE_QUANTILE = 0.99
_FITTED_ON = 2000
_BATCH = 256
# Two grey levels, squared: errors below it are rounding, however well the images are drawn again.
_SMALLEST_SCALE = (2 / 255) ** 2


class _ChannelAttention(nn.Module):
    """Each channel weighted by what all of them hold on average."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.weights = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x.mean((2, 3)))[:, :, None, None]


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        _ChannelAttention(outputs),
    )


class AttentionAutoencoder(Network):
    """See the module and `build`."""

    pixel_scale: Tensor
    score_scale: Tensor

    def __init__(self, width: int, bottleneck: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.to_half = _block(3, width, 2)
        self.to_quarter = _block(width, 2 * width, 2)
        self.to_eighth = _block(2 * width, 4 * width, 2)
        self.squeeze = nn.Conv2d(4 * width, bottleneck, 1)
        self.expand = _block(bottleneck, 4 * width)
        self.from_eighth = _block(4 * width, 2 * width)
        self.from_quarter = _block(2 * width, width)
        self.from_half = _block(width, width)
        self.colours = nn.Conv2d(width, 3, 3, padding=1)
        # Until `finish` knows better: a tenth of the range of a pixel.
        self.register_buffer("pixel_scale", torch.tensor(0.01))
        self.register_buffer("score_scale", torch.tensor(0.01))

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        normal = pixels[labels == 0]
        if not len(normal):  # nothing to learn from this batch
            return 0 * torch.stack([weight.sum() for weight in self.parameters()]).sum()
        images = _varied(normal.float() / 255)
        return F.mse_loss(self._drawn(images), images)

    def finish(self, pixels: Tensor, labels: Tensor) -> None:
        """Set the scales from the errors of normal training images, of at most 2,000 of them."""
        normal = torch.nonzero(labels == 0)[:, 0]
        chosen = normal[:: -(-len(normal) // _FITTED_ON)]
        with torch.no_grad():
            parts = [self._errors(pixels[rows].float() / 255) for rows in chosen.split(_BATCH)]
        by_pixel, of_image = (torch.cat(part) for part in zip(*parts, strict=True))
        for scale, errors in ((self.pixel_scale, by_pixel), (self.score_scale, of_image)):
            # torch's own quantile takes 16 million numbers at most.
            reached = float(np.quantile(errors.numpy(), _SCALE_QUANTILE))
            scale.fill_(max(reached, _SMALLEST_SCALE))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        by_pixel, of_image = self._errors(pixels.float() / 255)
        heat = by_pixel / (by_pixel + self.pixel_scale)
        return of_image / (of_image + self.score_scale), heat

    def _errors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors (B, H/2, W/2), each the mean of four pixels, and (B,) of the images."""
        squared = (self._drawn(images) - images).square().mean(1, keepdim=True)
        by_pixel = F.avg_pool2d(squared, 2)[:, 0]
        errors = by_pixel.flatten(1)
        count = max(1, round(self.share * errors.shape[1]))
        return by_pixel, errors.topk(count, dim=1).values.mean(1)

    def _drawn(self, images: Tensor) -> Tensor:
        """The images drawn again from the bottleneck, float32 (B, 3, H, W) in [0, 1]."""
        half = self.to_half(images.contiguous(memory_format=torch.channels_last))
        quarter = self.to_quarter(half)
        few = self.squeeze(self.to_eighth(quarter))
        # Nothing but sizes goes past the bottleneck, so that any input size comes out again.
        up = _enlarged(self.from_eighth(self.expand(few)), quarter)
        up = _enlarged(self.from_quarter(up), half)
        up = _enlarged(self.from_half(up), images)
        return self.colours(up).float().sigmoid()


def _enlarged(small: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(small, like.shape[2:], mode="nearest")


def _varied(images: Tensor) -> Tensor:
    """Half of the images mirrored, all a little lighter or darker; float (B, 3, H, W) in [0, 1]."""
    device = images.device
    flipped = torch.rand(len(images), 1, 1, 1, device=device) < 0.5
    light = 0.9 + 0.2 * torch.rand(len(images), 1, 1, 1, device=device)
    return (torch.where(flipped, images.flip(-1), images) * light).clamp(0, 1)


def build(
    size: tuple[int, int], classes: tuple[str, ...], *, width: int, bottleneck: int, share: float
) -> Network:
    """Return the network with fresh weights; `OPTIONS` describes its options."""
    return AttentionAutoencoder(width, bottleneck, share)
