"""A detector that learns to tell normal images from drawn and from known anomalies.

A small encoder-decoder gives a logit for every second pixel and row (the heat map) and one for
the image. It is trained on normal images against copies with an anomaly put in: a generator's
(`ml.training.synthetic_anomalies`) or a known anomalous image's, pasted whole or in part. So it
learns what an anomaly looks like rather than what these particular moulds look like, which is what
carries over to moulds it has not seen. After DRAEM (Zavrtanik et al., 2021), without its
reconstruction half. The decoder narrows, enlarges and adds to the encoder's maps, as feature
pyramids do (Lin et al., 2017, arXiv:1612.03144): a third of the work of convolving both, side by
side, at the larger size. How unlike the normal training images an image is, anomalous or not, is
measured on the features that its logit comes from (`ml.training.novelty`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.models import Network
from ml.training import synthetic_anomalies as synthetic
from ml.training.novelty import Novelty

_KNOWN_SHARE = 0.35  # of the anomalies shown, how many are made from known ones
_MAP_WEIGHT = 0.5
_FITTED = 20_000  # normal images that novelty is fitted to, at most
_FITTED_AT_ONCE = 256


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class AnomalySegmenter(Network):
    """See the module; `width` is the number of channels at half resolution."""

    def __init__(self, width: int, generators: list[str]) -> None:
        super().__init__()
        self.generators = [synthetic.GENERATORS[name] for name in generators]
        self.to_half = nn.Sequential(_conv(4, width, 2), _conv(width, width))
        self.to_quarter = nn.Sequential(_conv(width, 2 * width, 2), _conv(2 * width, 2 * width))
        self.to_eighth = nn.Sequential(_conv(2 * width, 4 * width, 2), _conv(4 * width, 4 * width))
        self.from_eighth = nn.Conv2d(4 * width, 2 * width, 1)
        self.up_quarter = _conv(2 * width, 2 * width)
        self.from_quarter = nn.Conv2d(2 * width, width, 1)
        self.up_half = _conv(width, width)
        self.map = nn.Conv2d(width, 1, 1)
        self.image = nn.Linear(4 * width + 2, 1)
        self.novelty = Novelty(4 * width + 2)

    def optimizer(self, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=weight_decay)

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        images = pixels.float() / 255
        normal = _occluded(_varied(images[labels == 0]))
        anomalous, mask, drawn = self._anomalies(normal.roll(1, 0), images[labels == 1])
        map_logits, image_logits, _ = self._logits(_noisy(torch.cat([normal, anomalous])))
        truth = torch.cat([torch.zeros_like(normal[:, 0, 0, 0]), torch.ones_like(drawn)])
        image_loss = F.binary_cross_entropy_with_logits(image_logits, truth)
        wanted = torch.cat([torch.zeros_like(normal[:, :1]), mask])
        by_pixel = F.binary_cross_entropy_with_logits(
            map_logits, F.interpolate(wanted, map_logits.shape[2:]), reduction="none"
        )
        # Where a known anomaly lies in its image nobody has said; its map teaches nothing.
        counted = torch.cat([torch.ones_like(normal[:, 0, 0, 0]), drawn])
        map_loss = (by_pixel.mean((1, 2, 3)) * counted).mean()
        return image_loss + _MAP_WEIGHT * map_loss

    @torch.no_grad()
    def finish(self, pixels: Tensor, labels: Tensor) -> None:
        normal = torch.nonzero(labels == 0)[:, 0]
        if len(normal) > _FITTED:
            normal = normal[torch.arange(_FITTED) * len(normal) // _FITTED]
        features = [
            self._logits(pixels[part].float() / 255)[2] for part in normal.split(_FITTED_AT_ONCE)
        ]
        self.novelty.fit(torch.cat(features))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The map stays at half resolution: to enlarge it costs a fifth of the whole program, and
        # only the few that are shown need it.
        map_logits, image_logits, features = self._logits(pixels.float() / 255)
        score, heat = image_logits.float().sigmoid(), map_logits[:, 0].float().sigmoid()
        return score, heat, self.novelty(features)

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, 1, H/2, W/2) of the map and (B,) of the images, and the features (B, F) that
        the latter come from."""
        half = self.to_half(_standardised(images).contiguous(memory_format=torch.channels_last))
        quarter = self.to_quarter(half)
        eighth = self.to_eighth(quarter)
        up = self.up_quarter(quarter + _enlarged(self.from_eighth(eighth), quarter))
        up = self.up_half(half + _enlarged(self.from_quarter(up), half))
        map_logits = self.map(up)
        strongest = map_logits.flatten(1).topk(8, dim=1).values
        parts = [eighth.mean((2, 3)), strongest[:, :1], strongest.mean(1, keepdim=True)]
        features = torch.cat(parts, 1)
        return map_logits, self.image(features)[:, 0], features

    def _anomalies(self, normal: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An anomaly in each image: the images, masks (B, 1, H, W), and 1 where it was drawn."""
        count = len(normal)
        from_known = round(_KNOWN_SHARE * count) if len(known) else 0
        images, masks = [], []
        if from_known:
            chosen = torch.randint(len(known), (from_known,), device=known.device)
            images.append(_transplanted(normal[:from_known], _varied(known[chosen])))
            masks.append(torch.zeros_like(normal[:from_known, :1]))
        parts = normal[from_known:].tensor_split(len(self.generators))
        for generator, part in zip(self.generators, parts, strict=True):
            image, mask = generator(part)
            images.append(image)
            masks.append(mask)
        drawn = torch.arange(count, device=normal.device) >= from_known
        return torch.cat(images), torch.cat(masks), drawn.float()


def _standardised(images: Tensor) -> Tensor:
    """Brightness and contrast of each image made alike, and how light each pixel is against its
    own image as a fourth channel."""
    mean = images.mean((1, 2, 3), keepdim=True)
    deviation = images.std((1, 2, 3), keepdim=True) + 0.05
    return torch.cat([(images - mean) / deviation, images.mean(1, keepdim=True) - 0.5], 1)


def _enlarged(small: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(small, like.shape[2:], mode="nearest")


def _varied(images: Tensor) -> Tensor:
    """Moved, scaled, turned, flipped, and under other light; float (B, 3, H, W) in [0, 1]."""
    count, device = len(images), images.device
    if count == 0:
        return images

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1, 1)), device=device)

    angle, scale = draw(-0.15, 0.15, 1), draw(0.75, 1.15, 1)
    flip = torch.where(torch.rand(count, 2, device=device) < 0.5, -1.0, 1.0)
    ratio = images.shape[2] / images.shape[3]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    stretch = draw(0.85, 1.18, 1)
    rows = [
        torch.cat([cos * stretch * flip[:, :1], -sin * ratio, draw(-0.2, 0.2, 1)], 1),
        torch.cat([sin / ratio, cos * flip[:, 1:], draw(-0.2, 0.2, 1)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    colour = 1 + 0.08 * torch.randn(count, 3, 1, 1, device=device)
    light = moved.clamp(1e-4, 1) ** draw(0.7, 1.4) * draw(0.7, 1.3) * colour
    contrast = (light - 0.5) * draw(0.75, 1.3) + 0.5 + draw(-0.06, 0.06)
    return contrast.clamp(0, 1)


def _occluded(images: Tensor) -> Tensor:
    """A quarter of the images with something plain and harmless in front: a bar with soft edges."""
    count, _, height, width = images.shape
    device = images.device
    y = torch.linspace(-1, 1, height, device=device)[None, None, :, None]
    x = torch.linspace(-1, 1, width, device=device)[None, None, None, :]
    angle = 3.1416 * torch.rand(count, 1, 1, 1, device=device)
    place = 1.6 * torch.rand(count, 1, 1, 1, device=device) - 0.8
    breadth = 0.1 + 0.45 * torch.rand(count, 1, 1, 1, device=device)
    distance = (x * angle.cos() + y * angle.sin() - place).abs() / breadth
    mask = torch.sigmoid((1 - distance) * 12)
    mask = mask * (torch.rand(count, 1, 1, 1, device=device) < 0.25)
    colour = torch.rand(count, 3, 1, 1, device=device)
    shading = 1 + 0.15 * synthetic.noise(count, height, width, 3, device)
    return (images * (1 - mask) + colour * shading * mask).clamp(0, 1)


def _transplanted(normal: Tensor, known: Tensor) -> Tensor:
    """A known anomaly whole, or a ragged part of it in a normal image."""
    count, _, height, width = normal.shape
    whole = torch.rand(count, 1, 1, 1, device=normal.device) < 0.6
    part = synthetic.blob(count, height, width, 0.35, 0.8, normal.device)
    opacity = part * (0.6 + 0.4 * torch.rand(count, 1, 1, 1, device=normal.device))
    return torch.where(whole, known, normal * (1 - opacity) + known * opacity)


def _noisy(images: Tensor) -> Tensor:
    """Sensor noise of a strength of its own for each image."""
    strength = 0.02 * torch.rand(len(images), 1, 1, 1, device=images.device)
    return (images + strength * torch.randn_like(images)).clamp(0, 1)


def build(size: tuple[int, int], classes: tuple[str, ...], options: dict[str, Any]) -> Network:
    """`options`: width (24), synthetic (names of generators; all)."""
    defaults: dict[str, Any] = {"width": 24, "synthetic": list(synthetic.GENERATORS)}
    if unknown := set(options) - set(defaults):
        raise TypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(defaults)}")
    chosen = defaults | options
    if missing := set(chosen["synthetic"]) - set(synthetic.GENERATORS):
        known = ", ".join(synthetic.GENERATORS)
        raise TypeError(f"synthetic: no generator {', '.join(sorted(missing))}; known: {known}")
    return AnomalySegmenter(chosen["width"], chosen["synthetic"])
