"""An anomaly's heat map as a picture."""

import io

import numpy as np
from PIL import Image

_RED = np.array([255.0, 32.0, 0.0], dtype=np.float32)
_SHORTEST_SIDE = 160


def picture(pixels: np.ndarray) -> Image.Image:
    """uint8 pixels (3, H, W) as an image."""
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def overlay(pixels: np.ndarray, heat: np.ndarray) -> Image.Image:
    """The image with the heat map laid over it in red, enlarged so that small crops can be seen.

    Parameters
    ----------
    pixels: uint8 (3, H, W), RGB, as the model saw them.
    heat: float (h, w) in [0, 1], of any resolution; 1 is painted nearly opaque.
    """
    _, height, width = pixels.shape
    factor = max(1, round(_SHORTEST_SIDE / min(height, width)))
    size = (width * factor, height * factor)
    image = picture(pixels).resize(size, Image.Resampling.BICUBIC)
    smooth = Image.fromarray(np.nan_to_num(heat).astype(np.float32)).resize(
        size, Image.Resampling.BILINEAR
    )
    opacity = 0.75 * np.clip(np.asarray(smooth), 0, 1)[..., None]
    blended = np.asarray(image, dtype=np.float32) * (1 - opacity) + _RED * opacity
    return Image.fromarray(blended.astype(np.uint8))


def png(pixels: np.ndarray, heat: np.ndarray) -> bytes:
    """`overlay` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    # Pillow's default makes it a sixth smaller in seven times the time.
    overlay(pixels, heat).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
