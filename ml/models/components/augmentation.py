"""What may differ from image to image without meaning anything: place, size, light, camera, and
what passes in front. Float images (B, 3, H, W) in [0, 1] in and out.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ml.models.components.drawing import chance, clouds, coordinates, tint, uniform


def varied(images: Tensor) -> Tensor:
    """Moved, scaled, stretched, turned and flipped, and under other light."""
    return relit(_moved(images)) if len(images) else images


def _moved(images: Tensor) -> Tensor:
    count, device = len(images), images.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, device=device)

    angle, scale, stretch = draw(-0.2, 0.2), draw(0.65, 1.2), draw(0.8, 1.25)
    flip = torch.where(torch.rand(count, 2, device=device) < 0.5, -1.0, 1.0)
    ratio = images.shape[2] / images.shape[3]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.cat([cos * stretch * flip[:, :1], -sin * ratio, draw(-0.25, 0.25)], 1),
        torch.cat([sin / ratio, cos * flip[:, 1:], draw(-0.3, 0.3)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def relit(images: Tensor) -> Tensor:
    """Another camera and other light: sharpness, gamma, gain, white balance, saturation, contrast
    and a slope of brightness across the image."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    sharpness = uniform(images, -0.6, 1) * chance(images, 0.5)
    images = images + sharpness * (blurred - images)
    images = images.clamp(1e-4, 1) ** uniform(images, 0.7, 1.4)
    images = images * uniform(images, 0.75, 1.3) * tint(images, 0.1)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * uniform(images, 0.2, 1.6)
    images = (images - 0.5) * uniform(images, 0.7, 1.3) + 0.5 + uniform(images, -0.06, 0.06)
    y, x = coordinates(images)
    slope = 1 + uniform(images, -0.2, 0.2) * y + uniform(images, -0.2, 0.2) * x
    return (images * slope).clamp(0, 1)


def occluders(images: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Something harmless in front of a share of the images: a bar, a straight edge, or something
    round that comes in from the side.

    Returns:
        how much of each pixel it covers, (B, 1, H, W) in [0, 1], and what it looks like, (B, 3, H,
        W).
    """
    y, x = coordinates(images)
    angle = uniform(images, 0, 2 * math.pi)
    along = x * angle.cos() + y * angle.sin()
    distance = (along - uniform(images, -0.8, 0.8)).abs()
    bar = 12 * (1 - distance / uniform(images, 0.08, 0.4))
    edge = (along - uniform(images, 0.25, 0.9)) * uniform(images, 6, 25)
    out = 1.1 * uniform(images, 0.8, 1.2)
    from_side = ((x - out * angle.cos()) ** 2 + (0.8 * (y - out * angle.sin())) ** 2).sqrt()
    disc = (uniform(images, 0.4, 0.9) - from_side) * uniform(images, 6, 20)
    kind = uniform(images, 0, 1)
    shape = torch.where(kind < 0.4, bar, torch.where(kind < 0.7, edge, disc))
    colour = uniform(images, 0, 1) + tint(images, 0.12) - 1
    texture = 1 + uniform(images, 0, 0.25) * clouds(images, int(torch.randint(2, 7, ())))
    slope = 1 + uniform(images, -0.2, 0.2) * y + uniform(images, -0.2, 0.2) * x
    return shape.sigmoid() * chance(images, share), (colour * texture * slope).clamp(0, 1)


def noisy(images: Tensor) -> Tensor:
    """Sensor noise of a strength of its own for each image."""
    return (images + uniform(images, 0, 0.02) * torch.randn_like(images)).clamp(0, 1)
