"""A detector that learns to tell normal images from drawn and from known anomalies.

A small encoder-decoder gives a logit for every second pixel and row (the heat map) and one for
the image. It is trained on normal images against copies with an anomaly put in: a drawn one
(`ml.models.anomalies`) or a known anomalous image's, pasted whole or in part. So it learns what an
anomaly looks like rather than what these particular moulds look like, which is what carries over
to moulds it has not seen; for the same end every image is moved and put under other light, and
harmless things pass in front of normal and anomalous images alike. After DRAEM (Zavrtanik et al.,
2021), without its reconstruction half. The decoder narrows, enlarges and adds to the encoder's
maps, as feature pyramids do (Lin et al., 2017, arXiv:1612.03144): a third of the work of
convolving both, side by side, at the larger size. How unlike the normal training images an image
is, anomalous or not, is measured on the features that its logit comes from
(`ml.models.components.novelty`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.models import Network, anomalies
from ml.models.components.augmentation import noisy, occluders, varied
from ml.models.components.drawing import blob, chance, uniform
from ml.models.components.novelty import Novelty

OPTIONS = {
    # Channels at half of the resolution.
    "width": {"type": "int", "default": 24, "minimum": 1},
    # Synthetic anomalies to learn from; one that is named twice is used twice as often.
    "synthetic": {"type": "modules", "folder": "anomalies"},
    # Whether a mirrored image means the same.
    "flips": {"type": "bool", "default": True},
}

_KNOWN_SHARE = 0.15  # of the anomalies shown, how many are made from known ones
_OCCLUDED_SHARE = 0.4
_MAP_WEIGHT = 0.5
# Keeps the logits of what is easy small (label smoothing, Szegedy et al., 2016): a threshold
# halfway between two logits would else follow the kind of anomaly that is found most easily.
_SMOOTHING = 0.03
_FITTED = 20_000  # normal images that novelty is fitted to, at most
_FITTED_AT_ONCE = 256


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class AnomalySegmenter(Network):
    """See the module; `width` is the number of channels at half resolution, and `flips` says that
    a mirrored image means the same."""

    # Averaged weights lie where the loss is flat, and such carry over to other images than those
    # learned from (Cha et al., "SWAD: domain generalization by seeking flat minima", 2021).
    averaging = 0.1

    def __init__(self, width: int, kinds: list[str], flips: bool) -> None:
        super().__init__()
        self.flips = flips
        self.drawings = [anomalies.drawing(kind) for kind in kinds]
        self.known = torch.empty(0, dtype=torch.uint8)
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

    def start(self, pixels: Tensor, labels: Tensor) -> None:
        # They are so few that most batches would have none.
        self.known = pixels[labels == 1]

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        images = pixels.float() / 255
        normal = varied(images[labels == 0])
        anomalous, mask, drawn = self._anomalies(normal.roll(1, 0))
        images = torch.cat([normal, anomalous])
        wanted = torch.cat([torch.zeros_like(mask), mask])
        cover, front = occluders(images, _OCCLUDED_SHARE)
        images, wanted = images * (1 - cover) + front * cover, wanted * (1 - cover)
        map_logits, image_logits, _ = self._logits(_standardised(noisy(images)))
        truth = torch.cat([torch.zeros_like(drawn), torch.ones_like(drawn)])
        image_loss = F.binary_cross_entropy_with_logits(
            image_logits, truth * (1 - 2 * _SMOOTHING) + _SMOOTHING
        )
        by_pixel = F.binary_cross_entropy_with_logits(
            map_logits, F.interpolate(wanted, map_logits.shape[2:]), reduction="none"
        )
        # Where a known anomaly lies in its image nobody has said; its map teaches nothing.
        counted = torch.cat([torch.ones_like(drawn), drawn])
        map_loss = (by_pixel.mean((1, 2, 3)) * counted).mean()
        return image_loss + _MAP_WEIGHT * map_loss

    @torch.no_grad()
    def finish(self, pixels: Tensor, labels: Tensor) -> None:
        normal = torch.nonzero(labels == 0)[:, 0]
        if len(normal) > _FITTED:
            normal = normal[torch.arange(_FITTED) * len(normal) // _FITTED]
        features = [
            self._views(pixels[part].float() / 255)[2] for part in normal.split(_FITTED_AT_ONCE)
        ]
        self.novelty.fit(torch.cat(features))
        self.known = torch.empty(0, dtype=torch.uint8)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The map stays at half resolution: to enlarge it costs a fifth of the whole program, and
        # only the few that are shown need it.
        map_logits, image_logits, features = self._views(pixels.float() / 255)
        score, heat = image_logits.float().sigmoid(), map_logits[:, 0].float().sigmoid()
        return score, heat, self.novelty(features)

    def _views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_logits`, of images (B, 3, H, W) in [0, 1]; of an image and its mirror image the
        mean, which errs less."""
        images = _standardised(images)
        map_logits, image_logits, features = self._logits(images)
        if not self.flips:
            return map_logits, image_logits, features
        mirrored = self._logits(images.flip(-1))
        return (
            (map_logits + mirrored[0].flip(-1)) / 2,
            (image_logits + mirrored[1]) / 2,
            (features + mirrored[2]) / 2,
        )

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of standardised images (B, 4, H, W): logits (B, 1, H/2, W/2) of the map and (B,) of the
        images, and the features (B, F) that the latter come from."""
        half = self.to_half(images.contiguous(memory_format=torch.channels_last))
        quarter = self.to_quarter(half)
        eighth = self.to_eighth(quarter)
        up = self.up_quarter(quarter + _enlarged(self.from_eighth(eighth), quarter))
        up = self.up_half(half + _enlarged(self.from_quarter(up), half))
        map_logits = self.map(up)
        strongest = map_logits.flatten(1).topk(8, dim=1).values
        parts = [eighth.mean((2, 3)), strongest[:, :1], strongest.mean(1, keepdim=True)]
        features = torch.cat(parts, 1)
        return map_logits, self.image(features)[:, 0], features

    def _anomalies(self, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An anomaly in each image: the images, masks (B, 1, H, W), and 1 where it was drawn."""
        count = len(normal)
        from_known = round(_KNOWN_SHARE * count) if len(self.known) else 0
        images, masks = [], []
        if from_known:
            chosen = self.known[torch.randint(len(self.known), (from_known,))]
            known = varied(chosen.to(normal.device).float() / 255)
            images.append(_transplanted(normal[:from_known], known))
            masks.append(torch.zeros_like(normal[:from_known, :1]))
        parts = normal[from_known:].tensor_split(len(self.drawings))
        for draw, part in zip(self.drawings, parts, strict=True):
            image, mask = draw(part)
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


def _transplanted(normal: Tensor, known: Tensor) -> Tensor:
    """A known anomaly whole, or a ragged part of it in a normal image."""
    opacity = blob(normal, 0.35, 0.8) * uniform(normal, 0.6, 1)
    return torch.where(chance(normal, 0.6), known, normal * (1 - opacity) + known * opacity)


def build(
    size: tuple[int, int],
    classes: tuple[str, ...],
    *,
    width: int,
    synthetic: list[str],
    flips: bool,
) -> Network:
    """Return the network with fresh weights; `OPTIONS` describes its options."""
    return AnomalySegmenter(width, synthetic, flips)
