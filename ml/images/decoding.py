"""From an object's bytes to pixels, the same way for training and for scoring.

An image is decoded once, to RGB; each model takes it resized to its own input size. What cannot
be decoded is rejected with a reason code.
"""

import warnings

import cv2
import numpy as np
import simplejpeg

# They register themselves with Pillow as what opens their format.
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

from ml.images import headers
from ml.images.formats import FORMATS
from ml.images.headers import TooComplexError
from ml.images.rejection import Reason, RejectedError
from ml.parallel import WeightedSemaphore

_JPEG = b"\xff\xd8\xff"
_SIGNATURES = (_JPEG, b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")
# What Pillow says of a whole file that it has no decoder for.
_NO_DECODER = ("cannot handle", "not yet supported", "unknown pixel mode", "unsupported")
# And of a PNG whose profile or texts come to more than it holds in memory.
_TOO_LARGE = ("decompressed data too large", "too much memory")

# Pixels that may be held at once in all threads, at seven bytes each: four in Pillow, and three
# more as an array. What takes more counts several times.
_DECODING = WeightedSemaphore(64_000_000)
_WEIGHTS = {"WEBP": 3, "TIFF": 2}  # with the canvases of libwebp, the strips of libtiff
# A plain JPEG that holds less does not wait. One of so few pixels and bytes has no time to be lost
# with; its scans cannot be too many by far.
_UNBUDGETED, _SMALL = 1_000_000, 65_536
# Blocks of more than 32 MiB go back to the system when they are freed; smaller ones would stay with
# the thread that had them (https://pillow.readthedocs.io/en/stable/reference/block_allocator.html).
Image.core.set_block_size(64 * 2**20)
_BAND = 1024
# Pillow's RLE decoder is Python: a tenth of a microsecond a pixel, and more.
_RLE, _MOST_RLE_PIXELS = (1, 2), 4_000_000

# What makes an image upright, by its orientation (Exif 2.3, 4.6.4).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of a TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH = 258, 262, 322, 323
_WHITE_IS_ZERO = 0
# A tile may be larger than a small image, and bands may be stored one after the other.
_TILES_OF_ANY_IMAGE = 2**20
_MOST_LAYERS = 6

# Whole images go to threads of ours; threads within an image would wait for each other.
cv2.setNumThreads(1)
# Twice this many stop Pillow where it allocates before it returns a size: a WebP's canvas, what a
# GIF's frame leaves behind. `decode` raises it to its limit, and checks that limit itself.
Image.MAX_IMAGE_PIXELS = 32_000_000
# What is wrong with a file is in its rejection, or it is decoded all the same. Each warning that is
# not ignored would be kept, to be shown once only.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(
    content: bytes, *, max_pixels: int, target_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode a JPEG, PNG, BMP, WebP, TIFF or GIF (its first frame), upright.

    Of more than 8 bits a pixel the upper 8 are kept. Transparency is left out: a pixel shows its
    colour, however transparent it is. docs/images.md has the details.

    Args:
        content: the file's bytes.
        max_pixels: most pixels (width x height, as the header declares them) that are decoded.
        target_size: (height, width) in pixels that no model's input exceeds; lets a JPEG be decoded
            at 1/2, 1/4 or 1/8 of its size when that stays twice as large (DCT scaling). None: full
            size.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        RejectedError: the bytes are empty, not an image, cut short, larger than the limit, of more
            parts than a real image has (`ml.images.headers`), or pixels that no one has defined the
            range of (32-bit integers, floating point) or that there is no decoder for.
    """
    try:
        if content.startswith(_JPEG) and not _may_have_orientation(content):
            try:
                return _plain_jpeg(content, max_pixels, target_size)
            except ValueError:
                pass  # something is unusual or wrong with it; below it is decoded, or named
        return _any_image(content, max_pixels, target_size)
    except TooComplexError as error:
        raise RejectedError(Reason.TOO_COMPLEX, str(error)) from None


def _plain_jpeg(content: bytes, max_pixels: int, target_size: tuple[int, int] | None) -> np.ndarray:
    """The same pixels as Pillow gives, in a quarter of the time: both call libjpeg-turbo, and
    Pillow spends most of the time of a small image in Python. ValueError for anything but a whole
    JPEG in grey or YCbCr."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    if colours not in ("YCbCr", "Gray"):
        raise ValueError(f"{colours} is left to Pillow")
    _check_pixels(width, height, max_pixels)
    reduction = 1
    if target_size is not None:
        wanted = _twice(target_size, turned=False)
        possible = min(height // wanted[0], width // wanted[1])
        reduction = next(factor for factor in (8, 4, 2, 1) if factor <= max(possible, 1))
    least = -(-height // reduction), -(-width // reduction)
    if width * height <= _SMALL and len(content) <= _SMALL:
        return _decoded_jpeg(content, *least)
    held = width * height // reduction**2 // 2
    if headers.check_jpeg(content).buffered:
        held += width * height
    if held <= _UNBUDGETED:
        return _decoded_jpeg(content, *least)
    with _DECODING.acquire(held):
        return _decoded_jpeg(content, *least)


def _decoded_jpeg(content: bytes, min_height: int, min_width: int) -> np.ndarray:
    pixels: np.ndarray = simplejpeg.decode_jpeg(
        content, "RGB", min_height=min_height, min_width=min_width
    )
    return pixels


def _any_image(content: bytes, max_pixels: int, target_size: tuple[int, int] | None) -> np.ndarray:
    image = _opened(content, max_pixels)
    try:
        held = 0
        if image.format in ("JPEG", "MPO"):
            if image.width * image.height > _SMALL and headers.check_jpeg(content).buffered:
                held = image.width * image.height
            if target_size is not None:
                height, width = _twice(target_size, turned=_orientation(image) >= 5)
                image.draft("RGB", (width, height))
        held += image.width * image.height * _WEIGHTS.get(image.format or "", 1)
        with _DECODING.acquire(held):
            image.load()
            _check_exif(image)
            turn = _TURNS.get(_orientation(image))
            return _array(_rgb(image if turn is None else image.transpose(turn)))
    except (RejectedError, TooComplexError):
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise RejectedError(Reason.TRUNCATED, _first_line(error)) from None


def _opened(content: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The image as Pillow sees it, its header read and no pixel yet."""
    if not content:
        raise RejectedError(Reason.EMPTY, "the object holds zero bytes")
    if max_pixels > 2 * (Image.MAX_IMAGE_PIXELS or max_pixels):
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = _identified(content)
    except (RejectedError, TooComplexError):
        raise
    except Image.DecompressionBombError:
        detail = f"more pixels than the limit of {max_pixels}, by the header"
        raise RejectedError(Reason.TOO_MANY_PIXELS, detail) from None
    except Exception as error:  # a header may make a parser raise anything
        raise _rejection_of_header(_first_line(error)) from None
    _check_pixels(image.width, image.height, max_pixels)
    _check_tiles(image, max_pixels)
    return image


def _rejection_of_header(detail: str) -> RejectedError:
    if any(part in detail.lower() for part in _NO_DECODER):
        return RejectedError(Reason.UNSUPPORTED, detail)
    if any(part in detail.lower() for part in _TOO_LARGE):
        return RejectedError(Reason.TOO_COMPLEX, detail)
    return RejectedError(Reason.TRUNCATED, f"broken header: {detail}")


def _identified(content: bytes) -> ImageFile.ImageFile:
    """Pillow's image of the format that the first bytes say; it raises whatever its parser does.

    `Image.open` does the same, but for what the parser says of a file that it cannot read.
    """
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(content[:16]) is not True:
            continue
        if name == "JPEG":
            headers.check_jpeg(content)
        elif name == "PNG":
            headers.check_png(content)
        elif name == "TIFF":
            headers.check_tiff(content)
        return factory(headers.Reader(content), "")
    if content.startswith(_SIGNATURES):
        raise ValueError("cannot identify the file's format")
    raise RejectedError(Reason.NOT_AN_IMAGE, "cannot identify the file's format")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RejectedError(
            Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels; limit {max_pixels}"
        )


def _check_tiles(image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Refuse a file whose parts are slow to decode, or come to more than the image they make."""
    pixels = image.width * image.height
    rle = image.format == "BMP" and image.info["compression"] in _RLE
    if rle and pixels > _MOST_RLE_PIXELS:
        raise TooComplexError(f"{pixels} run-length encoded pixels; limit {_MOST_RLE_PIXELS}")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # libtiff decodes a tile whole, however little of it the image covers.
        width, height = (max(1, image.tag_v2.get(tag, 1)) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        tiles = -(-image.width // width) * -(-image.height // height)
        if tiles * width * height > max(max_pixels, _TILES_OF_ANY_IMAGE):
            detail = f"{tiles} tiles of {width} x {height} pixels; limit {max_pixels}"
            raise RejectedError(Reason.TOO_MANY_PIXELS, detail)
        boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
        covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
        if covered > _MOST_LAYERS * pixels:
            raise TooComplexError(f"strips of {covered} pixels for an image of {pixels}")


def _check_exif(image: Image.Image) -> None:
    size = len(image.info.get("exif") or b"")
    size = max(size, len(image.info.get("Raw profile type exif") or "") // 2)
    if size > headers.MOST_EXIF_BYTES:
        raise TooComplexError(f"more than {headers.MOST_EXIF_BYTES} bytes of Exif")


def _twice(target_size: tuple[int, int], turned: bool) -> tuple[int, int]:
    """Height and width that the stored image keeps when it is decoded at reduced scale: twice the
    input's, so that the resize that follows shows no aliasing."""
    height, width = target_size
    return (2 * width, 2 * height) if turned else (2 * height, 2 * width)


def _may_have_orientation(content: bytes) -> bool:
    """Whether a JPEG holds metadata that may say it is to be turned (Exif, or XMP)."""
    # Anywhere: a shortcut to the end of the header would miss one behind a profile that looks like
    # its end, and what is found in the pixels by chance only takes the slower way.
    return b"Exif\0\0" in content or b"tiff:Orientation" in content


def _orientation(image: Image.Image) -> int:
    """How the stored image lies, as Exif counts it from 1 to 8; 1 where nothing readable says so.
    A TIFF lies as it should: Pillow has turned it."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels may be whole, whatever a parser makes of the metadata
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
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
    """uint8 (height, width) of a grey image of 16 bits a pixel, or a TIFF's of 12.

    Pillow's own conversion cuts everything above 255 off, which leaves a white image.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = max(tags.get(_BITS_PER_SAMPLE, (16,)))
    grey: np.ndarray = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    # Pillow leaves it at that for 16 bits; of 8 bits it turns them round itself.
    return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


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


def _first_line(error: BaseException) -> str:
    """What a decoder says, fit for a table: one line, printable, of bounded length."""
    text = str(error).split("\n", 1)[0][:200]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
