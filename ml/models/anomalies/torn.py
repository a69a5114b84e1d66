"""A surface that is rough where it should be smooth."""

from torch import Tensor

from ml.models.components.procedural import blob_mask, grain_noise, uniform


def synthesize(images: Tensor) -> tuple[Tensor, Tensor]:
    """Roughen a part of each image; see `ml.models.anomalies`."""
    mask = blob_mask(images, 0.15, 0.55)
    return (images + mask * uniform(images, 0.06, 0.22) * grain_noise(images)).clamp(0, 1), mask
