"""What anomalies and occluders are drawn with: random numbers, noise and shapes, a batch at a time.

Everything is float32 on the device asked for; coordinates run from -1 to 1 over the image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(images: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    """A random number for each image: (B, channels, 1, 1) between `low` and `high`."""
    drawn = torch.rand(len(images), channels, 1, 1, device=images.device)
    return low + (high - low) * drawn


def chance(images: Tensor, share: float) -> Tensor:
    """True for about that share of the images: bool (B, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, device=images.device) < share


def tint(images: Tensor, strength: float) -> Tensor:
    """A factor around 1 for each channel of each image: (B, 3, 1, 1)."""
    return 1 + strength * torch.randn(len(images), 3, 1, 1, device=images.device)


def coordinates(images: Tensor) -> tuple[Tensor, Tensor]:
    """y (1, 1, H, 1) and x (1, 1, 1, W)."""
    height, width = images.shape[2:]
    y = torch.linspace(-1, 1, height, device=images.device)[None, None, :, None]
    x = torch.linspace(-1, 1, width, device=images.device)[None, None, None, :]
    return y, x


def clouds(images: Tensor, cells: int) -> Tensor:
    """Smooth noise (B, 1, H, W) of mean 0 and deviation about 1, with `cells` bumps a side."""
    height, width = images.shape[2:]
    coarse = torch.randn(len(images), 1, cells, 2 * cells, device=images.device)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)


def grain(images: Tensor, channels: int = 1) -> Tensor:
    """Noise (B, channels, H, W) of mean 0 and deviation about 1, whose grains are one to three
    pixels wide, mixed anew for each image.

    A camera's picture has no detail of one pixel, so noise of that size alone would give a drawn
    anomaly away.
    """
    count, _, height, width = images.shape
    shares = torch.rand(count, 3, 1, 1, device=images.device) ** 2
    shares = shares / (shares.square().sum(1, keepdim=True).sqrt() + 1e-6)
    mixed = torch.zeros(count, channels, height, width, device=images.device)
    # Enlarging smooths; the factors bring each size back to about the same deviation.
    for index, (size, factor) in enumerate(((1, 0.5), (2, 1.1), (3, 1.1))):
        shape = max(1, height // size), max(1, width // size)
        coarse = torch.randn(count, channels, *shape, device=images.device)
        fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
        mixed = mixed + factor * fine * shares[:, index : index + 1]
    return mixed


def blob(images: Tensor, smallest: float, largest: float) -> Tensor:
    """A ragged blob with soft edges in each image: (B, 1, H, W) in [0, 1].

    `smallest`, `largest`: its radius, as a share of the image's height.
    """
    y, x = coordinates(images)
    ratio = images.shape[2] / images.shape[3]
    up = 2 * uniform(images, smallest, largest)
    across = 2 * ratio * uniform(images, smallest, 1.6 * largest)
    centre_y, centre_x = uniform(images, -0.8, 0.8), uniform(images, -0.8, 0.8)
    distance = (((y - centre_y) / up) ** 2 + ((x - centre_x) / across) ** 2).sqrt()
    ragged = distance + uniform(images, 0.05, 0.45) * clouds(images, 6)
    return softened(((1.1 - ragged) * uniform(images, 1.5, 6)).clamp(0, 1))


def softened(mask: Tensor) -> Tensor:
    """A mask with the edges of a picture that went through a lens."""
    return F.avg_pool2d(F.pad(mask, (1, 1, 1, 1), mode="replicate"), 3, 1)
