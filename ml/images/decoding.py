"""From an object's bytes to pixels, the same way for training and for scoring.

An image is decoded once, to RGB; each model takes it resized to its own input size. An image that
cannot be decoded is rejected with a reason code.
"""

import warnings
from importlib import import_module

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from ml.images import headers
from ml.images.formats import FORMATS, JPEG, SIGNATURES
from ml.images.headers import TooComplexError
from ml.images.rejection import Reason, RejectedError
from ml.parallel import WeightedSemaphore

# A plugin registers itself with Pillow when it is imported.
for _format in FORMATS:
    import_module(_format.plugin)
_OPENERS = [(row, *Image.OPEN[row.name]) for row in FORMATS]
_MEMORY_WEIGHTS = {row.name: row.memory_weight for row in FORMATS}

# Parts of Pillow's messages about a whole file for which it has no decoder,
_NO_DECODER = ("cannot handle", "not yet supported", "unknown pixel mode", "unsupported")
# and about a PNG whose profile or texts are larger than Pillow reads.
_TOO_LARGE = ("decompressed data too large", "too much memory")

# Pixels that all threads together may hold while they decode. A pixel takes seven bytes: four in
# Pillow, and three in the array. A format whose decoder takes more has a larger weight.
_PIXELS_IN_MEMORY = WeightedSemaphore(64_000_000)
# A plain JPEG of fewer pixels is decoded without waiting for the others.
_MAX_UNCOUNTED_PIXELS = 1_000_000
# The scans of a JPEG of so few pixels and bytes are not counted, which would take a noticeable part
# of its time; there cannot be too many of them.
_MAX_SMALL = 65_536
# The memory of a block of more than 32 MiB goes back to the system when it is freed; smaller ones
# would stay with the thread
# (https://pillow.readthedocs.io/en/stable/reference/block_allocator.html).
Image.core.set_block_size(64 * 2**20)  # type: ignore[attr-defined]
_ROWS_PER_COPY = 1024
# Pillow decodes run lengths in Python, which takes at least 0.1 microseconds per pixel.
_RLE_COMPRESSIONS, _MAX_RLE_PIXELS = (1, 2), 4_000_000

# What turns an image upright, by its orientation (Exif 2.3, section 4.6.4).
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH = 258, 262, 322, 323
_WHITE_IS_ZERO = 0
# The tiles of a small image may have more pixels than the image, up to this number.
_MAX_TILE_PIXELS_OF_SMALL_IMAGE = 2**20
# The strips of an image may cover it several times, as when each colour has its own strips.
_MAX_COVERAGE = 6

# Twice this number is the limit at which Pillow stops where it allocates memory before it reports a
# size: a WebP's canvas, or what a GIF's frame leaves behind. `decode` raises it to its own limit,
# and checks that one itself.
Image.MAX_IMAGE_PIXELS = 32_000_000
# A rejection says what is wrong with a file, so warnings add nothing. Python would keep each one in
# memory, in order to show it only once.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(
    content: bytes, *, max_pixels: int, target_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode an image in one of `ml.images.formats.FORMATS`, upright; of several frames the first.

    Of samples with more than 8 bits, the upper 8 bits are kept. Transparency is ignored: a pixel
    has its colour, however transparent it is. docs/images.md has the details.

    Args:
        content: The file's bytes.
        max_pixels: Largest number of pixels (width x height, as the header declares them) that is
            decoded.
        target_size: Height and width in pixels, at least those of each model's input. A JPEG is
            then decoded at 1/2, 1/4 or 1/8 of its size where that is still twice as large (DCT
            scaling). None: full size.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        RejectedError: The bytes are empty, not an image, cut short, larger than the limit, have
            more parts than a real image (`ml.images.headers`), are in a variant without a decoder,
            or have pixels without a defined range (32-bit integers, floating point).
    """
    try:
        if content.startswith(JPEG.signatures) and not _may_have_orientation(content):
            try:
                return _decode_plain_jpeg(content, max_pixels, target_size)
            except ValueError:
                pass  # it is unusual or broken: Pillow decodes it, or says what is wrong
        return _decode_with_pillow(content, max_pixels, target_size)
    except TooComplexError as error:
        raise RejectedError(Reason.TOO_COMPLEX, str(error)) from None


def _decode_plain_jpeg(
    content: bytes, max_pixels: int, target_size: tuple[int, int] | None
) -> np.ndarray:
    """Decode a JPEG to the same pixels as Pillow, in a quarter of the time.

    Both call libjpeg-turbo, but Pillow spends most of the time of a small image in Python.

    Raises:
        ValueError: The file is not a whole JPEG in grey or YCbCr.
    """
    height, width, colour_space, _ = simplejpeg.decode_jpeg_header(content)
    if colour_space not in ("YCbCr", "Gray"):
        raise ValueError(f"{colour_space} is left to Pillow")
    _check_pixels(width, height, max_pixels)
    reduction = 1
    if target_size is not None:
        min_height, min_width = _reduced_size(target_size, is_rotated=False)
        limit = min(height // min_height, width // min_width)
        reduction = next(factor for factor in (8, 4, 2, 1) if factor <= max(limit, 1))
    size = -(-height // reduction), -(-width // reduction)
    if width * height <= _MAX_SMALL and len(content) <= _MAX_SMALL:
        return _decode_jpeg(content, *size)
    weight = width * height // reduction**2 // 2
    if headers.check_jpeg(content).buffered:
        weight += width * height
    if weight <= _MAX_UNCOUNTED_PIXELS:
        return _decode_jpeg(content, *size)
    with _PIXELS_IN_MEMORY.acquire(weight):
        return _decode_jpeg(content, *size)


def _decode_jpeg(content: bytes, min_height: int, min_width: int) -> np.ndarray:
    pixels: np.ndarray = simplejpeg.decode_jpeg(
        content, "RGB", min_height=min_height, min_width=min_width
    )
    return pixels


def _decode_with_pillow(
    content: bytes, max_pixels: int, target_size: tuple[int, int] | None
) -> np.ndarray:
    image = _open(content, max_pixels)
    try:
        weight = 0
        if image.format in ("JPEG", "MPO"):
            if image.width * image.height > _MAX_SMALL and headers.check_jpeg(content).buffered:
                weight = image.width * image.height
            if target_size is not None:
                is_rotated = _orientation(image) >= 5
                height, width = _reduced_size(target_size, is_rotated)
                image.draft("RGB", (width, height))
        weight += image.width * image.height * _MEMORY_WEIGHTS.get(image.format or "", 1)
        with _PIXELS_IN_MEMORY.acquire(weight):
            image.load()
            _check_exif(image)
            transpose = _TRANSPOSE.get(_orientation(image))
            return _to_array(_to_rgb(image if transpose is None else image.transpose(transpose)))
    except (RejectedError, TooComplexError):
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise RejectedError(Reason.TRUNCATED, _first_line(error)) from None


def _open(content: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image with Pillow, which reads its header and no pixels yet."""
    if not content:
        raise RejectedError(Reason.EMPTY, "the object holds zero bytes")
    if max_pixels > 2 * (Image.MAX_IMAGE_PIXELS or max_pixels):
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = _identify(content)
    except (RejectedError, TooComplexError):
        raise
    except Image.DecompressionBombError:
        detail = f"more pixels than the limit of {max_pixels}, by the header"
        raise RejectedError(Reason.TOO_MANY_PIXELS, detail) from None
    except Exception as error:  # a header may make a parser raise anything
        raise _reject_header(_first_line(error)) from None
    _check_pixels(image.width, image.height, max_pixels)
    _check_compression(image)
    _check_tiles(image, max_pixels)
    return image


def _reject_header(detail: str) -> RejectedError:
    if any(part in detail.lower() for part in _NO_DECODER):
        return RejectedError(Reason.UNSUPPORTED, detail)
    if any(part in detail.lower() for part in _TOO_LARGE):
        return RejectedError(Reason.TOO_COMPLEX, detail)
    return RejectedError(Reason.TRUNCATED, f"broken header: {detail}")


def _identify(content: bytes) -> ImageFile.ImageFile:
    """Open an image in the format that its first bytes declare; raises what the parser raises.

    `Image.open` does the same, but hides why the parser cannot read a file.
    """
    for row, factory, accepts in _OPENERS:
        if accepts is None or accepts(content[:16]) is not True:
            continue
        if row.check is not None:
            row.check(content)
        return factory(headers.LimitedReader(content), "")
    if content.startswith(SIGNATURES):
        raise ValueError("cannot identify the file's format")
    raise RejectedError(Reason.NOT_AN_IMAGE, "cannot identify the file's format")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RejectedError(
            Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels; limit {max_pixels}"
        )


def _check_compression(image: ImageFile.ImageFile) -> None:
    """Refuse a BMP that would take long to decode."""
    pixels = image.width * image.height
    is_rle = image.format == "BMP" and image.info["compression"] in _RLE_COMPRESSIONS
    if is_rle and pixels > _MAX_RLE_PIXELS:
        raise TooComplexError(f"{pixels} run-length encoded pixels; limit {_MAX_RLE_PIXELS}")


def _check_tiles(image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Refuse a TIFF whose tiles or strips have many more pixels than the image."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    # libtiff decodes a whole tile, however little of it the image covers.
    width, height = (max(1, image.tag_v2.get(tag, 1)) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    tiles = -(-image.width // width) * -(-image.height // height)
    if tiles * width * height > max(max_pixels, _MAX_TILE_PIXELS_OF_SMALL_IMAGE):
        detail = f"{tiles} tiles of {width} x {height} pixels; limit {max_pixels}"
        raise RejectedError(Reason.TOO_MANY_PIXELS, detail)
    boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    pixels = image.width * image.height
    if covered > _MAX_COVERAGE * pixels:
        raise TooComplexError(f"strips of {covered} pixels for an image of {pixels}")


def _check_exif(image: Image.Image) -> None:
    size = len(image.info.get("exif") or b"")
    size = max(size, len(image.info.get("Raw profile type exif") or "") // 2)
    if size > headers.MAX_EXIF_BYTES:
        raise TooComplexError(f"more than {headers.MAX_EXIF_BYTES} bytes of Exif")


def _reduced_size(target_size: tuple[int, int], is_rotated: bool) -> tuple[int, int]:
    """Return the smallest height and width to which the stored image may be reduced.

    They are twice those of the target, so that the following resize shows no aliasing.
    """
    height, width = target_size
    return (2 * width, 2 * height) if is_rotated else (2 * height, 2 * width)


def _may_have_orientation(content: bytes) -> bool:
    """Return whether a JPEG has metadata that can hold an orientation (Exif, or XMP)."""
    # The whole file is searched, since a profile may contain what looks like the end of the header.
    # Pixels that look like metadata by chance only make decoding slower.
    return b"Exif\0\0" in content or b"tiff:Orientation" in content


def _orientation(image: Image.Image) -> int:
    """Return an image's orientation, 1 to 8 as in Exif; 1 if it has none that can be read.

    It is 1 for a TIFF, since Pillow turns these itself.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata does not mean that the pixels are broken
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray(_upper_8_bits(image)).convert("RGB")
    if image.mode in ("I", "F"):
        raise RejectedError(
            Reason.UNSUPPORTED, f"pixels of mode {image.mode} have no defined range"
        )
    return image.convert("RGB")


def _upper_8_bits(image: Image.Image) -> np.ndarray:
    """Return a grey image of 16 bits per pixel (in a TIFF also 12) as uint8 (height, width).

    Pillow's own conversion clips values above 255, which results in a white image.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = max(tags.get(_BITS_PER_SAMPLE, (16,)))
    grey: np.ndarray = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    # Pillow inverts such an image itself when it has 8 bits, but not when it has 16.
    return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _to_array(image: Image.Image) -> np.ndarray:
    """Return an image as uint8 (height, width, 3).

    A large image is copied some rows at a time, since Pillow needs a second copy of what it hands
    over.
    """
    width, height = image.size
    if height <= _ROWS_PER_COPY:
        return np.asarray(image)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _ROWS_PER_COPY):
        bottom = min(top + _ROWS_PER_COPY, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _first_line(error: BaseException) -> str:
    """Return a decoder's message fit for a table: one printable line of limited length."""
    text = str(error).split("\n", 1)[0][:200]
    return "".join(character if character.isprintable() else "?" for character in text)
