"""A detector that learns to tell normal images from synthetic and from known anomalies.

A small encoder-decoder computes two kinds of logit: one for every second row and column of pixels,
the anomaly map, and one for the image. It is trained on normal images and on copies of them with an
anomaly: a synthetic one (`ml.models.anomalies`), or a part or the whole of a known anomalous image.
So it learns what an anomaly looks like rather than what these particular moulds look like, and that
carries over to moulds that it has not seen. For the same reason every image is augmented, and
harmless things occlude normal and anomalous images alike.

It follows DRAEM (Zavrtanik et al., 2021, arXiv:2108.07610), without the reconstruction. The decoder
upsamples and adds the encoder's maps, as feature pyramids do (Lin et al., 2017, arXiv:1612.03144):
a third of the work of convolving both, side by side, at the larger size. Novelty, how unlike the
normal training images an image is, is measured on the features from which the image's logit is
computed (`ml.models.components.novelty`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.models import Network, anomalies
from ml.models.components.augmentation import add_noise, augment, random_occlusion
from ml.models.components.novelty import Novelty
from ml.models.components.procedural import bernoulli, blob_mask, uniform

OPTIONS = {
    # Channels at half of the resolution.
    "width": {"type": "int", "default": 24, "minimum": 1},
    # Synthetic anomalies to learn from; one that is named twice is used twice as often.
    "synthetic": {"type": "modules", "folder": "anomalies"},
    # Whether a mirrored image means the same.
    "flips": {"type": "bool", "default": True},
}

_KNOWN_RATIO = 0.15  # of the anomalies of a batch, how many are made from known anomalous images
_OCCLUSION_PROBABILITY = 0.4
_MAP_LOSS_WEIGHT = 0.5
# Label smoothing (Szegedy et al., 2016) keeps the logits of easy images small. Without it, a
# threshold halfway between two logits would depend on the kind of anomaly that is easiest to find.
_LABEL_SMOOTHING = 0.03
_MAX_NOVELTY_IMAGES = 20_000  # normal images that novelty is fitted to, at most
_NOVELTY_BATCH = 256


def _conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class AnomalySegmenter(Network):
    """An encoder-decoder that segments anomalies.

    Args:
        width: the number of channels at half resolution.
        synthetic: the kinds of synthetic anomaly to train on (`ml.models.anomalies.names`); one
            that is named twice is made twice as often.
        flips: whether a mirrored image means the same.
    """

    # Averaged weights lie where the loss is flat, and so generalize better to other images (Cha et
    # al., "SWAD: domain generalization by seeking flat minima", 2021).
    ema_ratio = 0.1

    def __init__(self, width: int, synthetic: list[str], flips: bool) -> None:
        super().__init__()
        self.flips = flips
        self.synthesizers = [anomalies.load(name) for name in synthetic]
        self.known_anomalies = torch.empty(0, dtype=torch.uint8)
        self.to_half = nn.Sequential(_conv_block(4, width, 2), _conv_block(width, width))
        self.to_quarter = nn.Sequential(
            _conv_block(width, 2 * width, 2), _conv_block(2 * width, 2 * width)
        )
        self.to_eighth = nn.Sequential(
            _conv_block(2 * width, 4 * width, 2), _conv_block(4 * width, 4 * width)
        )
        self.from_eighth = nn.Conv2d(4 * width, 2 * width, 1)
        self.up_quarter = _conv_block(2 * width, 2 * width)
        self.from_quarter = nn.Conv2d(2 * width, width, 1)
        self.up_half = _conv_block(width, width)
        self.map = nn.Conv2d(width, 1, 1)
        self.image = nn.Linear(4 * width + 2, 1)
        self.novelty = Novelty(4 * width + 2)

    def train_indices(self, labels: Tensor) -> Tensor:
        """The normal images."""
        return torch.nonzero(labels == 0)[:, 0]

    def before_fit(self, pixels: Tensor, labels: Tensor) -> None:
        """Keep the known anomalies, which are so few that most batches would have none."""
        self.known_anomalies = pixels[labels == 1].to(self.device)

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Train on the batch's normal images, and on as many with an anomaly in them."""
        normal = augment(pixels.float() / 255)
        anomalous, masks, is_synthetic = self._add_anomalies(normal.roll(1, 0))
        images = torch.cat([normal, anomalous])
        target_map = torch.cat([torch.zeros_like(masks), masks])
        opacity, occlusion = random_occlusion(images, _OCCLUSION_PROBABILITY)
        images = images * (1 - opacity) + occlusion * opacity
        target_map = target_map * (1 - opacity)
        map_logits, image_logits, _ = self._logits(_standardize(add_noise(images)))
        targets = torch.cat([torch.zeros_like(is_synthetic), torch.ones_like(is_synthetic)])
        image_loss = F.binary_cross_entropy_with_logits(
            image_logits, targets * (1 - 2 * _LABEL_SMOOTHING) + _LABEL_SMOOTHING
        )
        pixel_losses = F.binary_cross_entropy_with_logits(
            map_logits, F.interpolate(target_map, map_logits.shape[2:]), reduction="none"
        )
        # No label says where in its image a known anomaly is, so its map does not count.
        has_mask = torch.cat([torch.ones_like(is_synthetic), is_synthetic])
        map_loss = (pixel_losses.mean((1, 2, 3)) * has_mask).mean()
        return image_loss + _MAP_LOSS_WEIGHT * map_loss

    @torch.no_grad()
    def after_fit(self, pixels: Tensor, labels: Tensor) -> None:
        """Fit novelty to the normal images, to at most 20,000 of them."""
        normal = self.train_indices(labels)
        if len(normal) > _MAX_NOVELTY_IMAGES:
            normal = normal[torch.arange(_MAX_NOVELTY_IMAGES) * len(normal) // _MAX_NOVELTY_IMAGES]
        features = [
            self._tta_logits(pixels[batch].to(self.device).float() / 255)[2]
            for batch in torch.split(normal, _NOVELTY_BATCH)
        ]
        self.novelty.fit(torch.cat(features))
        self.known_anomalies = torch.empty(0, dtype=torch.uint8)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score, the anomaly map (B, H/2, W/2) and the novelty."""
        # The map stays at half resolution: to upsample it takes a fifth of the whole program's
        # time, and only the few maps that are shown need it.
        map_logits, image_logits, features = self._tta_logits(pixels.float() / 255)
        score, anomaly_map = image_logits.float().sigmoid(), map_logits[:, 0].float().sigmoid()
        return score, anomaly_map, self.novelty(features)

    def _tta_logits(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_logits`, the mean over each image and its mirror image, which errs less.

        Test-time augmentation; images are float (B, 3, H, W) in [0, 1].
        """
        images = _standardize(images)
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
        """Compute the logits of standardized images, float (B, 4, H, W).

        Returns:
            Logits of the map (B, 1, H/2, W/2) and of the images (B,), and the features (B, F) that
            the latter are computed from.
        """
        half = self.to_half(images.contiguous(memory_format=torch.channels_last))
        quarter = self.to_quarter(half)
        eighth = self.to_eighth(quarter)
        up = self.up_quarter(quarter + _upsample_like(self.from_eighth(eighth), quarter))
        up = self.up_half(half + _upsample_like(self.from_quarter(up), half))
        map_logits = self.map(up)
        strongest = map_logits.flatten(1).topk(8, dim=1).values
        parts = [eighth.mean((2, 3)), strongest[:, :1], strongest.mean(1, keepdim=True)]
        features = torch.cat(parts, 1)
        return map_logits, self.image(features)[:, 0], features

    def _add_anomalies(self, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put an anomaly into each of the normal images, float (B, 3, H, W) in [0, 1].

        Returns:
            The images; masks (B, 1, H, W), zero where the anomaly is a known one; and 1 for each
            image whose anomaly is synthetic, else 0, float (B,).
        """
        count = len(normal)
        known_count = round(_KNOWN_RATIO * count) if len(self.known_anomalies) else 0
        images, masks = [], []
        if known_count:
            indices = torch.randint(len(self.known_anomalies), (known_count,), device=normal.device)
            known = augment(self.known_anomalies[indices].float() / 255)
            images.append(_cutpaste(normal[:known_count], known))
            masks.append(torch.zeros_like(normal[:known_count, :1]))
        parts = normal[known_count:].tensor_split(len(self.synthesizers))
        for synthesize, part in zip(self.synthesizers, parts, strict=True):
            image, mask = synthesize(part)
            images.append(image)
            masks.append(mask)
        is_synthetic = torch.arange(count, device=normal.device) >= known_count
        return torch.cat(images), torch.cat(masks), is_synthetic.float()


def _standardize(images: Tensor) -> Tensor:
    """Give each image the same brightness and contrast; float (B, 3, H, W) to (B, 4, H, W).

    The fourth channel is the grey level of each pixel as it was.
    """
    mean = images.mean((1, 2, 3), keepdim=True)
    deviation = images.std((1, 2, 3), keepdim=True) + 0.05
    return torch.cat([(images - mean) / deviation, images.mean(1, keepdim=True) - 0.5], 1)


def _upsample_like(small: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(small, target.shape[2:], mode="nearest")


def _cutpaste(normal: Tensor, known: Tensor) -> Tensor:
    """A known anomalous image as a whole, or a ragged part of it pasted into a normal image."""
    opacity = blob_mask(normal, 0.35, 0.8) * uniform(normal, 0.6, 1)
    return torch.where(bernoulli(normal, 0.6), known, normal * (1 - opacity) + known * opacity)


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
