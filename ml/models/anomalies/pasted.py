"""A piece of another image, under other light, where it does not belong.

Not for a line where other things of the same look may come into view without harm.
"""

from torch import Tensor

from ml.models.components.augmentation import relit
from ml.models.components.drawing import blob


def draw(images: Tensor) -> tuple[Tensor, Tensor]:
    """See `ml.models.anomalies`."""
    height, width = images.shape[2:]
    mask = blob(images, 0.2, 0.6)
    other = relit(images.roll(1, 0).roll((height // 2, width // 3), (2, 3)))
    return images * (1 - mask) + other * mask, mask
