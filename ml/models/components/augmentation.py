"""Random changes that do not change what an image means: place, size, light, camera, occlusion.

Images are float (B, 3, H, W) in [0, 1], in and out.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ml.models.components.procedural import (
    bernoulli,
    blur,
    channel_gain,
    coordinates,
    smooth_noise,
    uniform,
)


def augment(images: Tensor) -> Tensor:
    """Apply `random_affine` and then `color_jitter`; the batch may be empty."""
    return color_jitter(random_affine(images)) if len(images) else images


def random_affine(images: Tensor) -> Tensor:
    """Move, scale, stretch, rotate and flip each image; reflect it at the borders."""
    count, device = len(images), images.device

    def sample(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, device=device)

    angle, scale, stretch = sample(-0.2, 0.2), sample(0.65, 1.2), sample(0.8, 1.25)
    flip = torch.where(torch.rand(count, 2, device=device) < 0.5, -1.0, 1.0)
    ratio = images.shape[2] / images.shape[3]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix_rows = [
        torch.cat([cos * stretch * flip[:, :1], -sin * ratio, sample(-0.25, 0.25)], 1),
        torch.cat([sin / ratio, cos * flip[:, 1:], sample(-0.3, 0.3)], 1),
    ]
    matrices = torch.stack(matrix_rows, 1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def color_jitter(images: Tensor) -> Tensor:
    """Picture each image with another camera and under other light.

    Changes sharpness, gamma, gain, white balance, saturation, contrast and brightness, and adds a
    slope of brightness across the image.
    """
    blurred = blur(images)
    sharpness = uniform(images, -0.6, 1) * bernoulli(images, 0.5)
    images = images + sharpness * (blurred - images)
    images = images.clamp(1e-4, 1) ** uniform(images, 0.7, 1.4)
    images = images * uniform(images, 0.75, 1.3) * channel_gain(images, 0.1)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * uniform(images, 0.2, 1.6)
    images = (images - 0.5) * uniform(images, 0.7, 1.3) + 0.5 + uniform(images, -0.06, 0.06)
    y, x = coordinates(images)
    slope = 1 + uniform(images, -0.2, 0.2) * y + uniform(images, -0.2, 0.2) * x
    return (images * slope).clamp(0, 1)


def random_occlusion(images: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Something harmless in front of some images: a bar, an edge, or a disc from the side.

    Args:
        images: the batch that the occlusions are for.
        probability: that an image has one.

    Returns:
        The opacity of the occlusion at each pixel, (B, 1, H, W) in [0, 1], and its colour,
        (B, 3, H, W) in [0, 1].
    """
    y, x = coordinates(images)
    angle = uniform(images, 0, 2 * math.pi)
    along = x * angle.cos() + y * angle.sin()
    distance = (along - uniform(images, -0.8, 0.8)).abs()
    bar = 12 * (1 - distance / uniform(images, 0.08, 0.4))
    edge = (along - uniform(images, 0.25, 0.9)) * uniform(images, 6, 25)
    centre = 1.1 * uniform(images, 0.8, 1.2)  # from the middle of the image: outside of it
    radius = ((x - centre * angle.cos()) ** 2 + (0.8 * (y - centre * angle.sin())) ** 2).sqrt()
    disc = (uniform(images, 0.4, 0.9) - radius) * uniform(images, 6, 20)
    kind = uniform(images, 0, 1)
    shape = torch.where(kind < 0.4, bar, torch.where(kind < 0.7, edge, disc))
    colour = uniform(images, 0, 1) + channel_gain(images, 0.12) - 1
    texture = 1 + uniform(images, 0, 0.25) * smooth_noise(images, int(torch.randint(2, 7, ())))
    slope = 1 + uniform(images, -0.2, 0.2) * y + uniform(images, -0.2, 0.2) * x
    opacity = shape.sigmoid() * bernoulli(images, probability)
    return opacity, (colour * texture * slope).clamp(0, 1)


def add_noise(images: Tensor) -> Tensor:
    """Add a camera sensor's noise, of another strength in each image."""
    return (images + uniform(images, 0, 0.02) * torch.randn_like(images)).clamp(0, 1)
