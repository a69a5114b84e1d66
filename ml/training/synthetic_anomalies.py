"""Anomalies drawn into normal images while training: kinds that people know and have few or no
pictures of.

Each generator takes a batch of normal images and gives them back with an anomaly, and a mask of
where it is. Another line adds its own in a file like this one. The idea of training a detector on
drawn anomalies is that of DRAEM (Zavrtanik et al., 2021) and CutPaste (Li et al., 2021).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Generator = Callable[[Tensor], tuple[Tensor, Tensor]]


def noise(count: int, height: int, width: int, cells: int, device: torch.device) -> Tensor:
    """Smooth noise (B, 1, H, W) of mean 0 and deviation about 1, with `cells` bumps a side."""
    coarse = torch.randn(count, 1, cells, 2 * cells, device=device)
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)


def blob(
    count: int, height: int, width: int, smallest: float, largest: float, device: torch.device
) -> Tensor:
    """Ragged soft-edged blobs (B, 1, H, W) in [0, 1]; radii are shares of the image's height."""
    y = torch.linspace(0, height, height, device=device)[None, None, :, None]
    x = torch.linspace(0, width, width, device=device)[None, None, None, :]

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, device=device)

    centre_y, centre_x = draw(0.1, 0.9) * height, draw(0.1, 0.9) * width
    radius_y, radius_x = draw(smallest, largest) * height, draw(smallest, 1.6 * largest) * height
    distance = (((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2).sqrt()
    ragged = distance + draw(0.05, 0.45) * noise(count, height, width, 6, device)
    return ((1.1 - ragged) * draw(1.5, 6)).clamp(0, 1)


def spill(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Bright, sparkling, torn material; float (B, 3, H, W) in [0, 1] in and out."""
    count, _, height, width = pixels.shape
    device = pixels.device
    mask = blob(count, height, width, 0.12, 0.45, device)
    fine = torch.randn(count, 1, height, width, device=device)
    middle = noise(count, height, width, 12, device)
    mixture = torch.rand(count, 1, 1, 1, device=device)
    texture = mixture * fine + (1 - mixture) * middle
    brightness = 0.45 + 0.5 * torch.rand(count, 1, 1, 1, device=device)
    tint = 1 + 0.08 * torch.randn(count, 3, 1, 1, device=device)
    contrast = 0.1 + 0.25 * torch.rand(count, 1, 1, 1, device=device)
    material = (brightness + contrast * texture) * tint
    opacity = mask * (0.6 + 0.4 * torch.rand(count, 1, 1, 1, device=device))
    return (pixels * (1 - opacity) + material * opacity).clamp(0, 1), mask


def torn(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The surface is rough where it should be smooth."""
    count, _, height, width = pixels.shape
    device = pixels.device
    mask = blob(count, height, width, 0.15, 0.45, device)
    rough = torch.randn(count, 1, height, width, device=device)
    strength = 0.08 + 0.15 * torch.rand(count, 1, 1, 1, device=device)
    return (pixels + mask * strength * rough).clamp(0, 1), mask


def empty(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """An empty mould: a smooth inside, darker or shaded, with a rim."""
    count, _, height, width = pixels.shape
    device = pixels.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, device=device)

    y = torch.linspace(-1, 1, height, device=device)[None, None, :, None]
    x = torch.linspace(-1, 1, width, device=device)[None, None, None, :]
    power = draw(2, 5)
    along = ((x - draw(-0.3, 0.3)).abs() / draw(0.45, 0.95)) ** power
    across = ((y - draw(-0.3, 0.3)).abs() / draw(0.45, 0.95)) ** power
    distance = (along + across) ** (1 / power)
    softness = draw(10, 30)
    inside = torch.sigmoid((1 - distance) * softness)
    rim = torch.exp(-(((distance - 1) / draw(0.04, 0.14)) ** 2))
    level = pixels.mean((1, 2, 3), keepdim=True)
    shade = 1 + draw(-0.35, 0.35) * y + draw(-0.35, 0.35) * x
    tint = 1 + 0.06 * torch.randn(count, 3, 1, 1, device=device)
    hollow = level * draw(0.25, 1.15) * shade * tint
    shown = inside * draw(0.75, 1)
    drawn = pixels * (1 - shown) + hollow * shown
    drawn = drawn * (1 - rim * draw(0.1, 0.7)) + draw(-0.05, 0.12) * rim
    return drawn.clamp(0, 1), inside


def pasted(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """A piece of another image, or of another place, where it does not belong."""
    count, _, height, width = pixels.shape
    mask = blob(count, height, width, 0.15, 0.5, pixels.device)
    other = pixels.roll(1, 0).roll((height // 2, width // 3), (2, 3))
    contrast = 1 + 0.8 * (torch.rand(count, 1, 1, 1, device=pixels.device) - 0.3)
    other = ((other - 0.5) * contrast + 0.5).clamp(0, 1)
    return pixels * (1 - mask) + other * mask, mask


GENERATORS: dict[str, Generator] = {
    "spill": spill,
    "torn": torn,
    "empty": empty,
    "pasted": pasted,
}
