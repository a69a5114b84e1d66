"""From an object's bytes to pixels, the same way for training and for scoring.

An image is decoded once, to RGB; each model takes it resized to its own input size. What cannot
be decoded is rejected with a reason code.
"""

import io
import warnings
from enum import StrEnum

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from ml.parallel import Budget

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

_JPEG = b"\xff\xd8\xff"
_SIGNATURES = (_JPEG, b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")

# Pixels that Pillow may hold at once in all threads: four bytes each, and three more as an array.
_DECODING = Budget(64_000_000)
# Blocks of more than 32 MiB go back to the system when they are freed; smaller ones would stay with
# the thread that had them (https://pillow.readthedocs.io/en/stable/reference/block_allocator.html).
Image.core.set_block_size(64 * 2**20)
_BAND = 1024

# Whole images go to threads of ours; threads within an image would wait for each other.
cv2.setNumThreads(1)
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
) -> np.ndarray:
    """Decode a JPEG, PNG, BMP, WebP, TIFF or GIF (its first frame), upright.

    Of 16 bits a pixel the upper 8 are kept. Transparency is left out: a pixel shows its colour,
    however transparent it is.

    Parameters
    ----------
    content: the file's bytes.
    max_pixels: most pixels (width x height, as the header declares them) that are decoded.
    at_least: (height, width) in pixels that no model's input exceeds; lets a JPEG be decoded at
        1/2, 1/4 or 1/8 of its size when that stays twice as large (DCT scaling). None: full size.

    Returns
    -------
    uint8 (height, width, 3), RGB.

    Raises
    ------
    Rejected: the bytes are empty, not an image, cut short, larger than the limit, or pixels whose
        range no one has defined (32-bit integers, floating point).
    """
    if content.startswith(_JPEG) and not _may_be_turned(content):
        try:
            return _plain_jpeg(content, max_pixels, at_least)
        except ValueError:
            pass  # something is unusual or wrong with it; below it is decoded, or named
    image = _opened(content, max_pixels)
    try:
        if at_least is not None and image.format == "JPEG":
            height, width = _twice(at_least, _is_turned(image))
            image.draft("RGB", (width, height))
        with _DECODING.of(image.width * image.height):
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _array(_rgb(image))
    except Rejected:
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise Rejected(Reason.TRUNCATED, _first_line(error)) from None


def _plain_jpeg(content: bytes, max_pixels: int, at_least: tuple[int, int] | None) -> np.ndarray:
    """The same pixels as Pillow gives, in a quarter of the time: both call libjpeg-turbo, and
    Pillow spends most of the time of a small image in Python. ValueError for anything but a whole
    JPEG in grey or YCbCr."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    if colours not in ("YCbCr", "Gray"):
        raise ValueError(f"{colours} is left to Pillow")
    if width * height > max_pixels:
        raise Rejected(Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels; limit {max_pixels}")
    reduction = 1
    if at_least is not None:
        wanted = _twice(at_least, turned=False)
        possible = min(height // wanted[0], width // wanted[1])
        reduction = next(factor for factor in (8, 4, 2, 1) if factor <= max(possible, 1))
    pixels: np.ndarray = simplejpeg.decode_jpeg(
        content, "RGB", min_height=-(-height // reduction), min_width=-(-width // reduction)
    )
    return pixels


def _opened(content: bytes, max_pixels: int) -> Image.Image:
    """The image as Pillow sees it, its header read and no pixel yet."""
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
    return image


def _twice(at_least: tuple[int, int], turned: bool) -> tuple[int, int]:
    """Height and width that the stored image keeps when it is decoded at reduced scale: twice the
    input's, so that the resize that follows shows no aliasing."""
    height, width = at_least
    return (2 * width, 2 * height) if turned else (2 * height, 2 * width)


def _may_be_turned(content: bytes) -> bool:
    """Whether a JPEG holds metadata that may say it is to be turned (Exif, or XMP)."""
    # Anywhere: a shortcut to the end of the header would miss one behind a profile that looks like
    # its end, and what is found in the pixels by chance only takes the slower way.
    return b"Exif\0\0" in content or b"tiff:Orientation" in content


def _is_turned(image: Image.Image) -> bool:
    """Whether the stored image lies on its side (Exif orientations 5 to 8)."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) >= 5


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts everything above 255 off, which leaves a white image.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Rejected(Reason.UNSUPPORTED, f"pixels of mode {image.mode} have no defined range")
    return image.convert("RGB")


def _array(image: Image.Image) -> np.ndarray:
    """uint8 (height, width, 3); a large image goes over in bands, since Pillow copies it twice."""
    width, height = image.size
    if height <= _BAND:
        return np.asarray(image)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _BAND):
        bottom = min(top + _BAND, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def resize(pixels: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """An image at a model's input size, the mean of what each pixel covers (bilinear to enlarge).

    The aspect ratio is not kept, as every crop of a line has the same.

    Parameters
    ----------
    pixels: uint8 (height, width, 3).
    size: (height, width) wanted.
    out: uint8 (3, height, width) in channels-last order, as `room` makes it, to write to.

    Returns
    -------
    uint8 (3, height, width) in channels-last order: `out` where it is given.
    """
    height, width = size
    if out is None:
        out = room(1, size)[0]
    by_rows = out.transpose(1, 2, 0)
    if pixels.shape[:2] == size:
        by_rows[:] = pixels
        return out
    shrinks = pixels.shape[0] > height or pixels.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cv2.resize(pixels, (width, height), dst=by_rows, interpolation=method)
    return out


def room(count: int, size: tuple[int, int]) -> np.ndarray:
    """Room for images uint8 (count, 3, height, width), in channels-last order: that in which
    decoders give them and convolutions want them."""
    return np.empty((count, *size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)


def _first_line(error: BaseException) -> str:
    # Pillow names the in-memory buffer with its address, which differs on every retry.
    text = str(error).split("\n", 1)[0]
    return "cannot identify the file's format" if "BytesIO" in text else text[:200]
