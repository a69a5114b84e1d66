"""From an object's bytes to pixels, the same way for training and for scoring.

An image is decoded once, to RGB; each model takes it resized to its own input size. What cannot
be decoded is rejected with a reason code.
"""

import io
import warnings
from enum import StrEnum

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")

# The limit is ours to check, with a reason code, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


class Reason(StrEnum):
    """Why an image was rejected."""

    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    UNSUPPORTED = "unsupported"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_BYTES = "too_many_bytes"
    GONE = "gone"
    CHANGED = "changed"
    NOT_FINITE = "not_finite"


# The object may come back under the same ETag, so these do not settle an image for good.
TRANSIENT = (Reason.GONE, Reason.CHANGED)


class Rejected(Exception):
    """The image cannot be scored: a reason code and a detail for the reader."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode(
    content: bytes, *, max_pixels: int, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode a JPEG, PNG, BMP, WebP, TIFF or GIF (its first frame) to an upright RGB image.

    Of 16 bits a pixel the upper 8 are kept. Transparency is left out: a pixel shows its colour,
    however transparent it is.

    Parameters
    ----------
    content: the file's bytes.
    max_pixels: most pixels (width x height, as the header declares them) that are decoded.
    at_least: (height, width) in pixels that no model's input exceeds; lets a JPEG be decoded at
        1/2, 1/4 or 1/8 of its size when that stays twice as large (DCT scaling). None: full size.

    Raises
    ------
    Rejected: the bytes are empty, not an image, cut short, larger than the limit, or pixels whose
        range no one has defined (32-bit integers, floating point).
    """
    if not content:
        raise Rejected(Reason.EMPTY, "the object holds zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # a header may make a parser raise anything
        if content.startswith(_SIGNATURES):
            raise Rejected(Reason.TRUNCATED, f"broken header: {_first_line(error)}") from None
        raise Rejected(Reason.NOT_AN_IMAGE, _first_line(error)) from None
    width, height = image.size
    if width * height > max_pixels:
        raise Rejected(Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels; limit {max_pixels}")
    try:
        if at_least is not None and image.format == "JPEG":
            # Twice the wanted size keeps the resize that follows free of visible aliasing.
            side = 2 * max(at_least)
            image.draft("RGB", (side, side))
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except Rejected:
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise Rejected(Reason.TRUNCATED, _first_line(error)) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts everything above 255 off, which leaves a white image.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Rejected(Reason.UNSUPPORTED, f"pixels of mode {image.mode} have no defined range")
    return image.convert("RGB")


def resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The image at a model's input size, as uint8 array of shape (3, height, width).

    Bilinear with antialiasing; the aspect ratio is not kept, as every crop of a line has the same.
    """
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def _first_line(error: BaseException) -> str:
    # Pillow names the in-memory buffer with its address, which differs on every retry.
    text = str(error).split("\n", 1)[0]
    return "cannot identify the file's format" if "BytesIO" in text else text[:200]
