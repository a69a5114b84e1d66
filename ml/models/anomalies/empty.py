"""An empty mould: its smooth inside shows, wall and floor, and its dark rim; wholly or in part."""

import math

import torch
from torch import Tensor

from ml.models.components.drawing import chance, clouds, coordinates, tint, uniform


def draw(images: Tensor) -> tuple[Tensor, Tensor]:
    """See `ml.models.anomalies`."""
    y, x = coordinates(images)
    centre_y, centre_x = uniform(images, -0.3, 0.3), uniform(images, -0.25, 0.25)
    radius_y, radius_x = uniform(images, 0.5, 1.1), uniform(images, 0.5, 1.05)
    turn, power = uniform(images, -0.12, 0.12), uniform(images, 1.8, 3.2)
    across = (x - centre_x) * turn.cos() + (y - centre_y) * turn.sin()
    up = (y - centre_y) * turn.cos() - (x - centre_x) * turn.sin()
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
    hollow = hollow * shade * (1 + uniform(images, 0, 0.05) * clouds(images, 4))
    hollow = hollow + _highlight(images)
    shown = _uncovered(images)
    opacity = inside * shown * uniform(images, 0.8, 1)
    drawn = images * (1 - opacity) + hollow * opacity
    around = torch.atan2(up, across)
    # Often only one side of the rim is dark.
    side = 0.5 + uniform(images, 0, 1) * (around - uniform(images, 0, 2 * math.pi)).sin()
    side = (side + uniform(images, 0, 0.6)).clamp(0, 1)
    rim = torch.exp(-(((rim_distance - 1) / uniform(images, 0.04, 0.18)) ** 2)) * side
    drawn = drawn * (1 - rim * shown * uniform(images, 0.15, 0.8))
    return drawn.clamp(0, 1), inside * shown


def _superellipse(across: Tensor, up: Tensor, power: Tensor) -> Tensor:
    return (across.abs() ** power + up.abs() ** power) ** (1 / power)


def _material(images: Tensor, floor: Tensor) -> Tensor:
    """Wall and floor, in a darker or lighter shade of the image's own colour or in any grey."""
    own = images.mean((2, 3), keepdim=True) * uniform(images, 0.35, 1.15)
    wall = own.where(chance(images, 0.65), uniform(images, 0.12, 0.75)) * tint(images, 0.06)
    bottom = wall * uniform(images, 0.7, 1.4) * tint(images, 0.04)
    return wall * (1 - floor) + bottom * floor


def _highlight(images: Tensor) -> Tensor:
    """A soft reflection of a lamp, in a quarter of the images."""
    y, x = coordinates(images)
    up = (y - uniform(images, -0.6, 0.6)) / uniform(images, 0.08, 0.4)
    across = (x - uniform(images, -0.6, 0.6)) / uniform(images, 0.08, 0.3)
    spot = torch.exp(-(up**2) - across**2)
    return spot * uniform(images, 0.1, 0.5) * chance(images, 0.25)


def _uncovered(images: Tensor) -> Tensor:
    """Where the inside shows: everywhere, or on one side of a ragged edge in some images."""
    y, x = coordinates(images)
    angle = uniform(images, 0, 2 * math.pi)
    edge = x * angle.cos() + y * angle.sin() + uniform(images, -0.1, 0.6)
    shown = ((edge + 0.15 * clouds(images, 4)) * uniform(images, 5, 20)).sigmoid()
    return shown.where(chance(images, 0.3), 1.0)
