"""Random numbers, noise and shapes that synthetic anomalies and occlusions are made of.

Every function works on a batch at a time and returns float32 tensors on the device of `images`,
float (B, 3, H, W). Random numbers come from torch's global generator.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(images: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    """A random number between `low` and `high` for each image: (B, channels, 1, 1)."""
    numbers = torch.rand(len(images), channels, 1, 1, device=images.device)
    return low + (high - low) * numbers


def bernoulli(images: Tensor, probability: float) -> Tensor:
    """True for each image with the given probability: bool (B, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, device=images.device) < probability


def channel_gain(images: Tensor, deviation: float) -> Tensor:
    """A random factor around 1 for each channel of each image, a colour cast: (B, 3, 1, 1)."""
    return 1 + deviation * torch.randn(len(images), 3, 1, 1, device=images.device)


def coordinates(images: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' y (1, 1, H, 1) and the columns' x (1, 1, 1, W), from -1 to 1 over the image."""
    height, width = images.shape[2:]
    y = torch.linspace(-1, 1, height, device=images.device)[None, None, :, None]
    x = torch.linspace(-1, 1, width, device=images.device)[None, None, None, :]
    return y, x


def smooth_noise(images: Tensor, cells: int) -> Tensor:
    """Smooth noise of mean 0 and deviation about 1: (B, 1, H, W).

    Args:
        images: the batch that the noise is for.
        cells: cells of the coarse noise per height; there are twice as many per width.
    """
    height, width = images.shape[2:]
    coarse = torch.randn(len(images), 1, cells, 2 * cells, device=images.device)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)


def grain_noise(images: Tensor, channels: int = 1) -> Tensor:
    """Noise of mean 0 and deviation about 1: (B, channels, H, W).

    Its grains are one to three pixels wide, in other proportions for each image. A camera's picture
    has no detail of one pixel, so noise of that size alone would give a synthetic anomaly away.
    """
    count, _, height, width = images.shape
    weights = torch.rand(count, 3, 1, 1, device=images.device) ** 2
    weights = weights / (weights.square().sum(1, keepdim=True).sqrt() + 1e-6)
    noise = torch.zeros(count, channels, height, width, device=images.device)
    # Upsampling smooths; the factors bring each size back to about the same deviation.
    for index, (size, factor) in enumerate(((1, 0.5), (2, 1.1), (3, 1.1))):
        shape = max(1, height // size), max(1, width // size)
        coarse = torch.randn(count, channels, *shape, device=images.device)
        fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
        noise = noise + factor * fine * weights[:, index : index + 1]
    return noise


def blob_mask(images: Tensor, min_radius: float, max_radius: float) -> Tensor:
    """A ragged blob with soft edges in each image: (B, 1, H, W) in [0, 1].

    Args:
        images: the batch that the mask is for.
        min_radius: the smallest radius, as a share of the image's height.
        max_radius: the largest one.
    """
    y, x = coordinates(images)
    ratio = images.shape[2] / images.shape[3]
    radius_y = 2 * uniform(images, min_radius, max_radius)
    radius_x = 2 * ratio * uniform(images, min_radius, 1.6 * max_radius)
    centre_y, centre_x = uniform(images, -0.8, 0.8), uniform(images, -0.8, 0.8)
    distance = (((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2).sqrt()
    ragged = distance + uniform(images, 0.05, 0.45) * smooth_noise(images, 6)
    return blur(((1.1 - ragged) * uniform(images, 1.5, 6)).clamp(0, 1))


def blur(images: Tensor) -> Tensor:
    """A box blur of 3 x 3 pixels, as soft as what a lens pictures; (B, C, H, W) in and out."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
