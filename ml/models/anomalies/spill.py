"""Material over the lip: bright, sparkling, torn."""

from torch import Tensor

from ml.models.components.procedural import (
    bernoulli,
    blob_mask,
    channel_gain,
    grain_noise,
    uniform,
)


def synthesize(images: Tensor) -> tuple[Tensor, Tensor]:
    """Put spilled material into each image; see `ml.models.anomalies`."""
    mask = blob_mask(images, 0.2, 0.6)
    texture = grain_noise(images) + uniform(images, 0, 0.6) * grain_noise(images, 3)
    sparkle = (grain_noise(images, 3) - uniform(images, 1.2, 2)).clamp(0, 1) * uniform(images, 0, 1)
    own_colour = images.mean((2, 3), keepdim=True) * uniform(images, 0.9, 1.7)
    brightness = own_colour.where(bernoulli(images, 0.6), uniform(images, 0.4, 0.9))
    material = brightness + uniform(images, 0.05, 0.22) * texture
    material = material * channel_gain(images, 0.08)
    material = material + sparkle * bernoulli(images, 0.6)
    opacity = mask * uniform(images, 0.6, 1)
    return (images * (1 - opacity) + material * opacity).clamp(0, 1), mask
