"""Images at a model's input size."""

import cv2
import numpy as np
from PIL import (  # noqa: F401
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)


def resize(pixels: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """An image at a model's input size, the mean of what each pixel covers (bilinear to enlarge).

    The aspect ratio is not kept, as every crop of a line has the same.

    Args:
        pixels: uint8 (height, width, 3).
        size: (height, width) wanted.
        out: uint8 (3, height, width) in channels-last order, as `empty_batch` makes it, to write
            to.

    Returns:
        uint8 (3, height, width) in channels-last order: `out` where it is given.
    """
    height, width = size
    if out is None:
        out = empty_batch(1, size)[0]
    by_rows = out.transpose(1, 2, 0)
    if pixels.shape[:2] == size:
        by_rows[:] = pixels
        return out
    shrinks = pixels.shape[0] > height or pixels.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cv2.resize(pixels, (width, height), dst=by_rows, interpolation=method)
    return out


def empty_batch(count: int, size: tuple[int, int]) -> np.ndarray:
    """Room for images uint8 (count, 3, height, width), in channels-last order: that in which
    decoders give them and convolutions want them."""
    return np.empty((count, *size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
