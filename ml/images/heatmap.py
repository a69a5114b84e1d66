"""An anomaly's heat map as a picture."""

import cv2
import numpy as np
import simplejpeg
from PIL import Image

_RED = (255, 32, 0)
_SHORTEST_SIDE = 160
_QUALITY = 90


def picture(pixels: np.ndarray) -> Image.Image:
    """uint8 pixels (3, H, W) as an image."""
    return Image.fromarray(_by_rows(pixels))


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image with the heat map laid over it in red, enlarged so that small crops can be seen.

    Args:
        pixels: uint8 (3, H, W), RGB, as the model saw them.
        heat: float (h, w) in [0, 1], of any resolution; 1 is painted nearly opaque.

    Returns:
        uint8 (k H, k W, 3), RGB; k is the factor by which the image was enlarged.
    """
    _, height, width = pixels.shape
    factor = max(1, round(_SHORTEST_SIDE / min(height, width)))
    size = (width * factor, height * factor)
    image = cv2.resize(_by_rows(pixels), size, interpolation=cv2.INTER_CUBIC)
    known = np.nan_to_num(heat).astype(np.float32)
    smooth = cv2.resize(known, size, interpolation=cv2.INTER_LINEAR)
    opacity = 0.75 * np.clip(smooth, 0, 1)
    red = np.full_like(image, _RED)
    blended: np.ndarray = cv2.blendLinear(red, image, opacity, 1 - opacity)
    return blended


def jpeg(pixels: np.ndarray, heat: np.ndarray) -> bytes:
    """`overlay` as the bytes of a JPEG file: as a PNG it is six times as large, and takes seven
    times as long to make."""
    blended = overlay(pixels, heat)
    content: bytes = simplejpeg.encode_jpeg(blended, _QUALITY, "RGB", "444")
    return content


def _by_rows(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
