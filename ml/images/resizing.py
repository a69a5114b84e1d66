"""Images at a model's input size."""

import cv2
import numpy as np

# Our own threads work on several images at once; threads within an image would wait for each other.
cv2.setNumThreads(1)


def resize(pixels: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """Resize an image: a pixel is the mean of the area that it covers, bilinear when enlarging.

    The aspect ratio is not kept: the images of a stream usually have the same one.

    Args:
        pixels: uint8 (height, width, 3).
        size: Height and width of the result.
        out: uint8 (3, height, width) in channels-last order, as in `empty_batch`, to write to.

    Returns:
        uint8 (3, height, width) in channels-last order; it is `out` if that is given.
    """
    height, width = size
    if out is None:
        out = empty_batch(1, size)[0]
    channels_last = out.transpose(1, 2, 0)
    if pixels.shape[:2] == size:
        channels_last[:] = pixels
        return out
    shrinks = pixels.shape[0] > height or pixels.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cv2.resize(pixels, (width, height), dst=channels_last, interpolation=method)
    return out


def empty_batch(count: int, size: tuple[int, int]) -> np.ndarray:
    """Return an uninitialised batch of images, uint8 (count, 3, height, width).

    Its memory is in channels-last order, in which decoders write and convolutions read.
    """
    return np.empty((count, *size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
