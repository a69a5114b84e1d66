"""A detector that is trained on normal images only: the baseline to compare others with.

A convolutional autoencoder with channel attention (squeeze-and-excitation, Hu et al., 2018,
arXiv:1709.01507) compresses an image into a few numbers and reconstructs it. As it learns that from
normal images, what it reconstructs badly is unusual: the squared error of each pixel is the anomaly
map, the mean of the largest errors the score. It never trains on anomalous images, not even on
known ones. The augmentation is light: half of the images are mirrored, all are made a little
lighter or darker.
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

# An error as large as that of the worst hundredth of the normal training images scores 1/2.
_SCALE_QUANTILE = 0.99
_MAX_SCALE_IMAGES = 2000
_BATCH = 256
# Two grey levels, squared: smaller errors are rounding, however good the reconstruction is.
_MIN_SCALE = (2 / 255) ** 2


class _ChannelAttention(nn.Module):
    """Weights each channel by the means of all channels."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.weights = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.weights(x.mean((2, 3)))
        return x * weights[:, :, None, None]


def _conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        _ChannelAttention(outputs),
    )


class AttentionAutoencoder(Network):
    """A convolutional autoencoder with channel attention.

    Args:
        width: the number of channels at half resolution.
        bottleneck: how many numbers each 8 x 8 pixels are compressed into.
        share: of the pixels of the anomaly map, the worst, whose mean error is the score.
    """

    pixel_scale: Tensor
    score_scale: Tensor

    def __init__(self, width: int, bottleneck: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.to_half = _conv_block(3, width, 2)
        self.to_quarter = _conv_block(width, 2 * width, 2)
        self.to_eighth = _conv_block(2 * width, 4 * width, 2)
        self.squeeze = nn.Conv2d(4 * width, bottleneck, 1)
        self.expand = _conv_block(bottleneck, 4 * width)
        self.from_eighth = _conv_block(4 * width, 2 * width)
        self.from_quarter = _conv_block(2 * width, width)
        self.from_half = _conv_block(width, width)
        self.colours = nn.Conv2d(width, 3, 3, padding=1)
        # Until `after_fit` sets them: the square of a tenth of a pixel's range.
        self.register_buffer("pixel_scale", torch.tensor(0.01))
        self.register_buffer("score_scale", torch.tensor(0.01))

    def train_indices(self, labels: Tensor) -> Tensor:
        """The normal images."""
        return torch.nonzero(labels == 0)[:, 0]

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The mean squared error of the reconstruction of normal images."""
        images = _augment(pixels.float() / 255)
        return F.mse_loss(self._reconstruct(images), images)

    @torch.no_grad()
    def after_fit(self, pixels: Tensor, labels: Tensor) -> None:
        """Set the scales from the errors of normal training images, of at most 2,000 of them."""
        normal = self.train_indices(labels)
        chosen = normal[:: -(-len(normal) // _MAX_SCALE_IMAGES)]
        batches = [
            self._errors(pixels[rows].to(self.device).float() / 255)
            for rows in torch.split(chosen, _BATCH)
        ]
        pixel_errors, image_errors = (torch.cat(errors) for errors in zip(*batches, strict=True))
        for scale, errors in ((self.pixel_scale, pixel_errors), (self.score_scale, image_errors)):
            # Not `torch.quantile`, which takes 16 million numbers at most.
            quantile = float(np.quantile(errors.cpu().numpy(), _SCALE_QUANTILE))
            scale.fill_(max(quantile, _MIN_SCALE))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the anomaly map (B, H/2, W/2)."""
        pixel_errors, image_errors = self._errors(pixels.float() / 255)
        anomaly_map = pixel_errors / (pixel_errors + self.pixel_scale)
        return image_errors / (image_errors + self.score_scale), anomaly_map

    def _errors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors (B, H/2, W/2), each the mean of four pixels, and (B,) of the images."""
        squared = (self._reconstruct(images) - images).square().mean(1, keepdim=True)
        pixel_errors = F.avg_pool2d(squared, 2)[:, 0]
        errors = pixel_errors.flatten(1)
        count = max(1, round(self.share * errors.shape[1]))
        return pixel_errors, errors.topk(count, dim=1).values.mean(1)

    def _reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images; float32 (B, 3, H, W) in [0, 1], in and out."""
        half = self.to_half(images.contiguous(memory_format=torch.channels_last))
        quarter = self.to_quarter(half)
        code = self.squeeze(self.to_eighth(quarter))
        # Only sizes bypass the bottleneck, so that the output has the input's size, whatever it is.
        up = _upsample_like(self.from_eighth(self.expand(code)), quarter)
        up = _upsample_like(self.from_quarter(up), half)
        up = _upsample_like(self.from_half(up), images)
        reconstruction: Tensor = self.colours(up).float().sigmoid()
        return reconstruction


def _upsample_like(small: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(small, target.shape[2:], mode="nearest")


def _augment(images: Tensor) -> Tensor:
    """Mirror half of the images, make all a little lighter or darker; (B, 3, H, W) in [0, 1]."""
    device = images.device
    flipped = torch.rand(len(images), 1, 1, 1, device=device) < 0.5
    brightness = 0.9 + 0.2 * torch.rand(len(images), 1, 1, 1, device=device)
    return (torch.where(flipped, images.flip(-1), images) * brightness).clamp(0, 1)


def build(
    size: tuple[int, int], classes: tuple[str, ...], *, width: int, bottleneck: int, share: float
) -> Network:
    """Return the network with fresh weights; `OPTIONS` describes its options."""
    return AttentionAutoencoder(width, bottleneck, share)
