"""Material over the lip: bright, sparkling, torn."""

from torch import Tensor

from ml.models.components.drawing import blob, chance, grain, tint, uniform


def draw(images: Tensor) -> tuple[Tensor, Tensor]:
    """See `ml.models.anomalies`."""
    mask = blob(images, 0.2, 0.6)
    texture = grain(images) + uniform(images, 0, 0.6) * grain(images, 3)
    sparkle = (grain(images, 3) - uniform(images, 1.2, 2)).clamp(0, 1) * uniform(images, 0, 1)
    own = images.mean((2, 3), keepdim=True) * uniform(images, 0.9, 1.7)
    brightness = own.where(chance(images, 0.6), uniform(images, 0.4, 0.9))
    material = (brightness + uniform(images, 0.05, 0.22) * texture) * tint(images, 0.08)
    material = material + sparkle * chance(images, 0.6)
    opacity = mask * uniform(images, 0.6, 1)
    return (images * (1 - opacity) + material * opacity).clamp(0, 1), mask
