"""A surface that is rough where it should be smooth."""

from torch import Tensor

from ml.models.components.drawing import blob, grain, uniform


def draw(images: Tensor) -> tuple[Tensor, Tensor]:
    """See `ml.models.anomalies`."""
    mask = blob(images, 0.15, 0.55)
    return (images + mask * uniform(images, 0.06, 0.22) * grain(images)).clamp(0, 1), mask
