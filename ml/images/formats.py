"""The image formats that are decoded.

A format is one row of `FORMATS`. A row is all that it takes to add one, if Pillow has a plugin for
the format which recognises a file by its first bytes. This module imports neither Pillow nor
OpenCV, since it is also used where nothing is decoded.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ml.images.headers import check_jpeg, check_png, check_tiff


@dataclass(frozen=True)
class Format:
    """An image format.

    Attributes:
        name: Pillow's name of the format.
        suffixes: Endings of file names, in lower case.
        signatures: First bytes of a file, by which a broken file is told from one that is no image.
        plugin: Pillow's module that decodes the format.
        memory_weight: Memory that the decoder takes, in multiples of what Pillow takes for the
            pixels.
        check: Raises TooComplexError if a file, given as bytes, would take too long to open.
    """

    name: str
    suffixes: tuple[str, ...]
    signatures: tuple[bytes, ...]
    plugin: str
    memory_weight: int = 1
    check: Callable[[bytes], object] | None = None


JPEG = Format(
    "JPEG", (".jpg", ".jpeg"), (b"\xff\xd8\xff",), "PIL.JpegImagePlugin", check=check_jpeg
)

FORMATS = (
    JPEG,
    Format("PNG", (".png",), (b"\x89PNG",), "PIL.PngImagePlugin", check=check_png),
    Format("BMP", (".bmp",), (b"BM",), "PIL.BmpImagePlugin"),
    # libwebp decodes to canvases of its own.
    Format("WEBP", (".webp",), (b"RIFF",), "PIL.WebPImagePlugin", memory_weight=3),
    # libtiff decodes to strips or tiles first.
    Format(
        "TIFF",
        (".tif", ".tiff"),
        (b"II*\0", b"MM\0*"),
        "PIL.TiffImagePlugin",
        memory_weight=2,
        check=check_tiff,
    ),
    Format("GIF", (".gif",), (b"GIF8",), "PIL.GifImagePlugin"),
)

SUFFIXES = tuple(suffix for row in FORMATS for suffix in row.suffixes)
SIGNATURES = tuple(signature for row in FORMATS for signature in row.signatures)
