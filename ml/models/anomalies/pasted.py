"""A piece of another image, under other light, where it does not belong.

Do not choose it where other things of the same look may come into view without harm.
"""

from torch import Tensor

from ml.models.components.augmentation import color_jitter
from ml.models.components.procedural import blob_mask


def synthesize(images: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a piece of the next image of the batch into each; see `ml.models.anomalies`."""
    height, width = images.shape[2:]
    mask = blob_mask(images, 0.2, 0.6)
    other = color_jitter(images.roll(1, 0).roll((height // 2, width // 3), (2, 3)))
    return images * (1 - mask) + other * mask, mask
