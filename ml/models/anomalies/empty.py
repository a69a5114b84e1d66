"""An empty mould: its smooth inside shows, wall and floor, and its dark rim; wholly or in part."""

import math

import torch
from torch import Tensor

from ml.models.components.procedural import (
    bernoulli,
    channel_gain,
    coordinates,
    smooth_noise,
    uniform,
)


def synthesize(images: Tensor) -> tuple[Tensor, Tensor]:
    """Put an empty mould into each image; see `ml.models.anomalies`."""
    y, x = coordinates(images)
    centre_y, centre_x = uniform(images, -0.3, 0.3), uniform(images, -0.25, 0.25)
    radius_y, radius_x = uniform(images, 0.5, 1.1), uniform(images, 0.5, 1.05)
    rotation, power = uniform(images, -0.12, 0.12), uniform(images, 1.8, 3.2)
    across = (x - centre_x) * rotation.cos() + (y - centre_y) * rotation.sin()
    up = (y - centre_y) * rotation.cos() - (x - centre_x) * rotation.sin()
    # Superellipses, 1 on the rim and less inside; the floor's lies a little higher or lower.
    rim_distance = _superellipse(across / radius_x, up / radius_y, power)
    floor_distance = _superellipse(
        across / radius_x, up / radius_y - uniform(images, -0.35, 0.35), power
    )
    inside = ((1 - rim_distance) * uniform(images, 8, 30)).sigmoid()
    floor = ((uniform(images, 0.45, 0.85) - floor_distance) * uniform(images, 5, 30)).sigmoid()
    hollow = _material(images, floor)
    shade = (
        1
        + uniform(images, -0.35, 0.35) * y
        + uniform(images, -0.35, 0.35) * x
        + uniform(images, -0.25, 0.25) * rim_distance.clamp(0, 1.5)
    )
    hollow = hollow * shade * (1 + uniform(images, 0, 0.05) * smooth_noise(images, 4))
    hollow = hollow + _highlight(images)
    visible = _visible(images)
    opacity = inside * visible * uniform(images, 0.8, 1)
    anomalous = images * (1 - opacity) + hollow * opacity
    darkness = _rim_darkness(images, torch.atan2(up, across))
    rim = torch.exp(-(((rim_distance - 1) / uniform(images, 0.04, 0.18)) ** 2)) * darkness
    anomalous = anomalous * (1 - rim * visible * uniform(images, 0.15, 0.8))
    return anomalous.clamp(0, 1), inside * visible


def _superellipse(across: Tensor, up: Tensor, power: Tensor) -> Tensor:
    return (across.abs() ** power + up.abs() ** power) ** (1 / power)


def _material(images: Tensor, floor: Tensor) -> Tensor:
    """Wall and floor, in a darker or lighter shade of the image's own colour or in any grey."""
    own_colour = images.mean((2, 3), keepdim=True) * uniform(images, 0.35, 1.15)
    wall = own_colour.where(bernoulli(images, 0.65), uniform(images, 0.12, 0.75))
    wall = wall * channel_gain(images, 0.06)
    bottom = wall * uniform(images, 0.7, 1.4) * channel_gain(images, 0.04)
    return wall * (1 - floor) + bottom * floor


def _highlight(images: Tensor) -> Tensor:
    """A soft reflection of a lamp, in a quarter of the images."""
    y, x = coordinates(images)
    up = (y - uniform(images, -0.6, 0.6)) / uniform(images, 0.08, 0.4)
    across = (x - uniform(images, -0.6, 0.6)) / uniform(images, 0.08, 0.3)
    spot = torch.exp(-(up**2) - across**2)
    return spot * uniform(images, 0.1, 0.5) * bernoulli(images, 0.25)


def _visible(images: Tensor) -> Tensor:
    """Where the inside shows: everywhere, or on one side of a ragged edge in some images."""
    y, x = coordinates(images)
    angle = uniform(images, 0, 2 * math.pi)
    edge = x * angle.cos() + y * angle.sin() + uniform(images, -0.1, 0.6)
    one_side = ((edge + 0.15 * smooth_noise(images, 4)) * uniform(images, 5, 20)).sigmoid()
    return one_side.where(bernoulli(images, 0.3), 1.0)


def _rim_darkness(images: Tensor, angle: Tensor) -> Tensor:
    """How dark the rim is at each angle, in [0, 1]; often only one side of it is."""
    side = 0.5 + uniform(images, 0, 1) * (angle - uniform(images, 0, 2 * math.pi)).sin()
    return (side + uniform(images, 0, 0.6)).clamp(0, 1)
