"""Bytes to pixels: what is decoded, how it is turned, and what is rejected for which reason."""

import io

import numpy as np
import pytest
from PIL import Image

from ml.images import Reason, Rejected, decode, resize

LIMIT = 1_000_000


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    x = np.linspace(0, 255, width, dtype=np.uint8)
    y = np.linspace(0, 255, height, dtype=np.uint8)
    pixels = np.stack([*np.meshgrid(x, y), np.full((height, width), 128, np.uint8)], axis=-1)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_every_format_decodes_to_rgb(kind):
    image = decode(encoded(gradient(), kind), max_pixels=LIMIT)
    assert (image.mode, image.size) == ("RGB", (40, 24))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    kind = {"CMYK": "TIFF"}.get(mode, "PNG")
    assert decode(encoded(gradient().convert(mode), kind), max_pixels=LIMIT).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_of_16_bits_a_pixel_the_upper_8_are_kept(kind, order):
    values = np.linspace(0, 65535, 40 * 24).astype(order).reshape(24, 40)
    mode = "I;16" if order == "<u2" else "I;16B"
    source = Image.frombytes(mode, (40, 24), values.tobytes())
    image = decode(encoded(source, kind), max_pixels=LIMIT)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[..., 0], (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_defined_range_are_rejected(mode):
    with pytest.raises(Rejected) as caught:
        decode(encoded(gradient().convert("L").convert(mode), "TIFF"), max_pixels=LIMIT)
    assert caught.value.reason == Reason.UNSUPPORTED


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter
    turned = decode(encoded(gradient(40, 24), "JPEG", exif=exif), max_pixels=LIMIT)
    assert turned.size == (24, 40)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"<html><script>alert(1)</script></html>", Reason.NOT_AN_IMAGE),
        (b"PK\x03\x04" + bytes(100), Reason.NOT_AN_IMAGE),
        (encoded(gradient(), "JPEG")[:-200], Reason.TRUNCATED),
        (encoded(gradient(200, 200), "PNG")[:300], Reason.TRUNCATED),
        (encoded(Image.new("L", (1001, 1000)), "PNG"), Reason.TOO_MANY_PIXELS),
    ],
)
def test_what_cannot_be_decoded_is_rejected_with_a_reason(content, reason):
    with pytest.raises(Rejected) as caught:
        decode(content, max_pixels=LIMIT)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_rejection_reads_the_same_on_a_retry():
    details = set()
    for _ in range(2):
        with pytest.raises(Rejected) as caught:
            decode(b"not an image", max_pixels=LIMIT)
        details.add(caught.value.detail)
    assert len(details) == 1


def test_resize_gives_channels_first_at_the_input_size():
    pixels = resize(gradient(), (32, 56))
    assert (pixels.shape, pixels.dtype) == ((3, 32, 56), np.uint8)
    assert np.array_equal(
        resize(gradient(56, 32), (32, 56))[0], np.asarray(gradient(56, 32))[..., 0]
    )


def test_a_large_jpeg_decoded_at_reduced_scale_stays_close_to_the_full_one():
    content = encoded(gradient(1600, 900), "JPEG", quality=90)
    full = resize(decode(content, max_pixels=10_000_000), (64, 64)).astype(int)
    reduced = decode(content, max_pixels=10_000_000, at_least=(64, 64))
    assert reduced.size[0] < 1600
    assert np.abs(resize(reduced, (64, 64)).astype(int) - full).max() <= 6
