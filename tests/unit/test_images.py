"""Bytes to pixels: what is decoded, how it is turned, and what is rejected for which reason."""

import io
import subprocess
import sys

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
    assert (image.shape, image.dtype) == ((24, 40, 3), np.uint8)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    kind = {"CMYK": "TIFF"}.get(mode, "PNG")
    image = decode(encoded(gradient().convert(mode), kind), max_pixels=LIMIT)
    assert image.shape == (24, 40, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_of_16_bits_a_pixel_the_upper_8_are_kept(kind, order):
    values = np.linspace(0, 65535, 40 * 24).astype(order).reshape(24, 40)
    mode = "I;16" if order == "<u2" else "I;16B"
    source = Image.frombytes(mode, (40, 24), values.tobytes())
    image = decode(encoded(source, kind), max_pixels=LIMIT)
    assert image.shape == (24, 40, 3)
    assert np.array_equal(image[..., 0], (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_defined_range_are_rejected(mode):
    with pytest.raises(Rejected) as caught:
        decode(encoded(gradient().convert("L").convert(mode), "TIFF"), max_pixels=LIMIT)
    assert caught.value.reason == Reason.UNSUPPORTED


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter
    turned = decode(encoded(gradient(40, 24), "JPEG", exif=exif), max_pixels=LIMIT)
    assert turned.shape == (40, 24, 3)


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
    pixels = resize(np.asarray(gradient()), (32, 56))
    assert (pixels.shape, pixels.dtype) == ((3, 32, 56), np.uint8)
    fitting = np.asarray(gradient(56, 32))
    assert np.array_equal(resize(fitting, (32, 56))[0], fitting[..., 0])


def test_a_large_jpeg_decoded_at_reduced_scale_stays_close_to_the_full_one():
    content = encoded(gradient(1600, 900), "JPEG", quality=90)
    full = resize(decode(content, max_pixels=10_000_000), (64, 64)).astype(int)
    reduced = decode(content, max_pixels=10_000_000, at_least=(64, 64))
    assert reduced.shape[1] < 1600
    assert np.abs(resize(reduced, (64, 64)).astype(int) - full).max() <= 6


def pillow(content: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """What Pillow alone makes of it, at the scale it chooses for twice `size` (height, width)."""
    image = Image.open(io.BytesIO(content))
    if size is not None:
        image.draft("RGB", (2 * size[1], 2 * size[0]))
    return np.asarray(image.convert("RGB"))


def noise(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"quality": 30}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("width, height", [(1, 1), (51, 27), (640, 480), (1001, 333)])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(width, height, mode, options):
    content = encoded(noise(width, height).convert(mode), "JPEG", **options)
    assert np.array_equal(decode(content, max_pixels=LIMIT), pillow(content))
    for size in ((32, 56), (100, 30)):
        found = decode(content, max_pixels=LIMIT, at_least=size)
        assert np.array_equal(found, pillow(content, size))


def test_a_turned_jpeg_decoded_at_reduced_scale_keeps_twice_the_input():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(noise(1600, 400), "JPEG", exif=exif)
    assert decode(content, max_pixels=LIMIT, at_least=(200, 50)).shape == (400, 100, 3)


def test_orientation_is_found_in_xmp_too():
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    )
    content = encoded(noise(40, 24), "JPEG", xmp=packet)
    assert decode(content, max_pixels=LIMIT).shape == (40, 24, 3)


def test_damage_is_judged_as_pillow_judges_it():
    """The quick way must not decide: what it refuses, Pillow decodes or names."""
    content = encoded(noise(200, 150), "JPEG")
    random = np.random.default_rng(1)
    scored = rejected = 0
    for _ in range(300):
        broken = bytearray(content)
        for place in random.integers(2, len(content), 3):
            broken[place] = random.integers(0, 256)
        try:
            expected = pillow(bytes(broken))
        except Exception:
            expected = None
        try:
            found = decode(bytes(broken), max_pixels=LIMIT)
        except Rejected:
            found = None
        assert (found is None) == (expected is None)
        if found is not None and found.shape == expected.shape:
            assert np.array_equal(found, expected)
        scored, rejected = scored + (found is not None), rejected + (found is None)
    assert scored > 50 and rejected > 5


@pytest.mark.parametrize("height", [1023, 1024, 1025, 3000])
def test_a_tall_image_is_the_same_in_bands(height):
    noise = np.random.default_rng(0).integers(0, 256, (height, 7, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "PNG")
    assert np.array_equal(decode(content, max_pixels=LIMIT), noise)


def test_images_at_the_limit_stay_within_memory_whatever_the_number_of_threads():
    code = """
import io, resource
from PIL import Image
from ml.images import decode
from ml.parallel import map_ahead
buffer = io.BytesIO()
Image.new("RGB", (8000, 8000), (90, 80, 70)).save(buffer, "PNG")
content = buffer.getvalue()
def work(_):
    return decode(content, max_pixels=64_000_000)[0, 0].tolist()
assert list(map_ahead(work, range(12), threads=8, ahead=9)) == [[90, 80, 70]] * 12
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1500
