"""Bytes to pixels: what is decoded, how it is turned, and what is rejected for which reason."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ml.images import headers
from ml.images.decoding import decode
from ml.images.formats import FORMATS
from ml.images.rejection import Reason, RejectedError
from ml.images.resizing import resize

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


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_every_format_decodes_to_rgb(row):
    content = encoded(gradient(), row.name)
    image = decode(content, max_pixels=LIMIT)
    assert (image.shape, image.dtype) == ((24, 40, 3), np.uint8)
    assert np.abs(image.astype(int) - np.asarray(gradient())).mean() < 10
    assert content.startswith(row.signatures)
    # With its header cut off it is broken, and still an image.
    assert rejection(content[:5]).reason == Reason.TRUNCATED
    assert {Image.registered_extensions()[suffix] for suffix in row.suffixes} == {row.name}


def test_a_row_is_all_that_a_format_takes():
    code = """
import io
from PIL import Image
from ml.images import formats
formats.FORMATS += (formats.Format("QOI", (".qoi",), (b"qoif",), "PIL.QoiImagePlugin"),)
from ml.images.decoding import decode
buffer = io.BytesIO()
Image.new("RGB", (8, 6), (90, 80, 70)).save(buffer, "QOI")
pixels = decode(buffer.getvalue(), max_pixels=48)
assert pixels.shape == (6, 8, 3) and pixels[5, 7].tolist() == [90, 80, 70]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


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
    with pytest.raises(RejectedError) as caught:
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
    with pytest.raises(RejectedError) as caught:
        decode(content, max_pixels=LIMIT)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_rejection_reads_the_same_on_a_retry():
    details = set()
    for _ in range(2):
        with pytest.raises(RejectedError) as caught:
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
    reduced = decode(content, max_pixels=10_000_000, target_size=(64, 64))
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
        pixels = decode(content, max_pixels=LIMIT, target_size=size)
        assert np.array_equal(pixels, pillow(content, size))


def test_a_turned_jpeg_decoded_at_reduced_scale_keeps_twice_the_input():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(noise(1600, 400), "JPEG", exif=exif)
    assert decode(content, max_pixels=LIMIT, target_size=(200, 50)).shape == (400, 100, 3)


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
        for offset in random.integers(2, len(content), 3):
            broken[offset] = random.integers(0, 256)
        try:
            expected = pillow(bytes(broken))
        except Exception:
            expected = None
        try:
            pixels = decode(bytes(broken), max_pixels=LIMIT)
        except RejectedError:
            pixels = None
        assert (pixels is None) == (expected is None)
        if pixels is not None and pixels.shape == expected.shape:
            assert np.array_equal(pixels, expected)
        scored, rejected = scored + (pixels is not None), rejected + (pixels is None)
    assert scored > 50 and rejected > 5


@pytest.mark.parametrize("height", [1023, 1024, 1025, 3000])
def test_a_tall_image_is_the_same_in_bands(height):
    noise = np.random.default_rng(0).integers(0, 256, (height, 7, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "PNG")
    assert np.array_equal(decode(content, max_pixels=LIMIT), noise)


@pytest.mark.slow
def test_images_at_the_limit_stay_within_memory_whatever_the_number_of_threads():
    code = """
import io
from pathlib import Path
from PIL import Image
from ml.images.decoding import decode
from ml.parallel import parallel_map
buffer = io.BytesIO()
Image.new("RGB", (8000, 8000), (90, 80, 70)).save(buffer, "PNG")
content = buffer.getvalue()
def work(_):
    return decode(content, max_pixels=64_000_000)[0, 0].tolist()
assert list(parallel_map(work, range(5), threads=5, buffer_size=6)) == [[90, 80, 70]] * 5
# Not `ru_maxrss`, which begins with the size of the process that started this one.
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1500 * 1024


# --- which way up -----------------------------------------------------------------------------------

# How orientation 1 to 8 is shown, as numpy turns the stored rows.
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


def quarters(width: int = 64, height: int = 48) -> np.ndarray:
    """An image whose quarters are red, green, blue and white, so that no two turns look alike."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return pixels


def with_orientation(kind: str, value: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    options: dict[str, object] = {"exif": exif.tobytes()}
    if kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    if kind == "WEBP":
        options |= {"lossless": True}
    if kind == "TIFF":
        options = {"tiffinfo": {0x0112: value}}
    return encoded(Image.fromarray(quarters()), kind, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_each_orientation_is_shown_upright(kind, orientation):
    content = with_orientation(kind, orientation)
    for target_size in (None, (8, 12)):
        pixels = decode(content, max_pixels=LIMIT, target_size=target_size)
        expected = UPRIGHT[orientation](quarters())
        if pixels.shape != expected.shape:  # a JPEG at reduced scale
            step = expected.shape[0] // pixels.shape[0]
            assert target_size and kind == "JPEG"
            expected = expected[::step, ::step]
        # JPEG has lost a little at the edges.
        assert np.abs(pixels.astype(int) - expected).mean() < (1 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_there_is_not_is_passed_over(kind, value):
    pixels = decode(with_orientation(kind, value), max_pixels=LIMIT, target_size=(24, 32))
    assert np.abs(pixels.astype(int) - quarters()).mean() < 1


def packet(orientation: int) -> bytes:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/>'
        "</x:xmpmeta>"
    ).encode()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_each_orientation_is_found_in_xmp_too(kind, orientation):
    options: dict[str, object] = {"xmp": packet(orientation)}
    if kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    if kind == "WEBP":
        options |= {"lossless": True}
    if kind == "TIFF":
        options = {"tiffinfo": {700: packet(orientation)}}
    content = encoded(Image.fromarray(quarters()), kind, **options)
    pixels = decode(content, max_pixels=LIMIT).astype(int)
    assert np.abs(pixels - UPRIGHT[orientation](quarters())).mean() < 1


def test_exif_goes_before_xmp_and_an_image_is_turned_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encoded(Image.fromarray(quarters()), "JPEG", exif=exif.tobytes(), xmp=packet(3))
    tiff = encoded(Image.fromarray(quarters()), "TIFF", tiffinfo={0x0112: 6, 700: packet(6)})
    for content in (jpeg, tiff):
        pixels = decode(content, max_pixels=LIMIT).astype(int)
        assert np.abs(pixels - UPRIGHT[6](quarters())).mean() < 5


@pytest.mark.parametrize("exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_exif_that_cannot_be_read_does_not_cost_the_image(kind, exif):
    content = encoded(Image.fromarray(quarters()), kind, exif=b"Exif\0\0" + exif)
    for target_size in (None, (8, 12)):
        assert decode(content, max_pixels=LIMIT, target_size=target_size).shape[1] in (64, 32)


# --- colours ----------------------------------------------------------------------------------------

ORANGE = (200, 100, 50)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *others: bytes) -> bytes:
    """A PNG of raw rows, each behind its filter byte; for kinds that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    rest = [*others, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(rest)


def first(content: bytes) -> tuple[int, ...]:
    return tuple(decode(content, max_pixels=LIMIT)[0, 0].tolist())


@pytest.mark.parametrize("alpha", [0, 1, 128, 255])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP"])
def test_a_transparent_pixel_shows_its_colour(kind, alpha):
    image = Image.new("RGBA", (8, 8), (*ORANGE, alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert first(encoded(image, kind, **options)) == ORANGE


def test_a_palette_gives_its_colours_transparent_or_not():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *ORANGE, 9, 9, 9])
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        assert first(encoded(image, kind)) == ORANGE
    assert first(encoded(image, "PNG", transparency=b"\xff\0\x80")) == ORANGE
    assert first(encoded(image, "GIF", transparency=1)) == ORANGE
    one_bit = Image.fromarray(np.array([[True, False]]))
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        assert decode(encoded(one_bit, kind), max_pixels=LIMIT).tolist() == [[[255] * 3, [0] * 3]]


def test_of_16_bits_a_channel_the_upper_8_are_kept():
    wide = struct.pack(">3H", 0x12FF, 0x8001, 0xFFFF)
    assert first(png(1, 1, 16, 2, b"\0" + wide)) == (0x12, 0x80, 0xFF)
    assert first(png(1, 1, 16, 6, b"\0" + wide + b"\0\0")) == (0x12, 0x80, 0xFF)
    assert first(png(1, 1, 16, 4, b"\0" + struct.pack(">2H", 0x12FF, 0))) == (0x12,) * 3
    # Grey with a transparent value, which Pillow keeps apart.
    transparent = chunk(b"tRNS", b"\x12\xff")
    assert first(png(1, 1, 16, 0, b"\0\x12\xff", transparent)) == (0x12,) * 3


def tiff(width: int, data: bytes, bits: int, photometric: int) -> bytes:
    """A TIFF of one row of grey."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 122), (277, 1), (278, 1), (279, len(data))]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data


def test_a_tiff_s_grey_has_the_upper_8_bits_of_12_or_16_and_white_may_be_zero():
    assert len(tiff(1, b"", 8, 1)) == 122
    assert first(tiff(2, b"\xab\xcd\xef", 12, 1)) == (0xAB,) * 3
    assert first(tiff(1, struct.pack("<H", 0x12FF), 16, 1)) == (0x12,) * 3
    assert first(tiff(1, struct.pack("<H", 0x12FF), 16, 0)) == (0xFF - 0x12,) * 3
    assert first(tiff(1, b"\x12", 8, 0)) == (0xFF - 0x12,) * 3


def test_a_cmyk_jpeg_is_read_as_adobe_writes_it_with_or_without_its_mark():
    image = Image.new("RGB", (16, 16), ORANGE).convert("CMYK")
    marked = encoded(image, "JPEG", quality=100)
    start = marked.find(b"\xff\xee")
    unmarked = marked[:start] + marked[start + 16 :]
    assert b"Adobe" in marked and b"Adobe" not in unmarked
    for content in (marked, unmarked, encoded(image, "TIFF")):
        assert np.abs(np.subtract(first(content), ORANGE)).max() <= 2
    # YCCK: the same three channels, as libjpeg turns them back.
    ycck = marked[: start + 15] + b"\x02" + marked[start + 16 :]
    assert first(ycck) not in (first(marked), (0, 0, 0))


def test_profiles_and_gamma_change_nothing():
    image = Image.new("RGB", (8, 8), ORANGE)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("PNG", "TIFF", "JPEG"):
        plain, profiled = encoded(image, kind), encoded(image, kind, icc_profile=profile)
        assert profiled != plain and first(profiled) == first(plain)
    gamma = chunk(b"gAMA", struct.pack(">I", 10_000))
    assert first(png(1, 1, 8, 2, b"\0" + bytes(ORANGE), gamma)) == ORANGE


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    others = [Image.new("RGB", (8, 8), (n, n, 255)) for n in (0, 90)]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.new("RGB", (8, 8), ORANGE)
    content = encoded(image, kind, save_all=True, append_images=others, **options)
    assert np.abs(np.subtract(first(content), ORANGE)).max() <= 2
    assert decode(content, max_pixels=LIMIT).shape == (8, 8, 3)


def test_a_gif_s_frame_that_leaves_its_canvas_makes_it_larger():
    frame = Image.new("P", (3, 2), 1)
    frame.putpalette([0, 0, 0, *ORANGE])
    frame.putpixel((0, 0), 0)
    content = bytearray(encoded(frame, "GIF"))
    offset = content.find(b",", 13 + 6)
    content[offset + 1 : offset + 5] = struct.pack("<HH", 4, 5)
    pixels = decode(bytes(content), max_pixels=LIMIT)
    assert pixels.shape == (7, 7, 3)
    assert tuple(pixels[6, 6].tolist()) == ORANGE and tuple(pixels[5, 4].tolist()) == (0, 0, 0)
    # What the frame leaves uncovered has the palette's first colour.
    assert tuple(pixels[0, 0].tolist()) == (0, 0, 0)


def test_a_bmp_may_be_stored_downwards():
    rows = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    header = struct.pack("<IiiHHIIiiII", 40, 4, -2, 1, 24, 0, 0, 0, 0, 0, 0)
    content = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + header + rows.tobytes()
    assert np.array_equal(decode(content, max_pixels=LIMIT), rows[..., ::-1])


# --- what is refused --------------------------------------------------------------------------------


def frame_of(jpeg: bytes, marker: int, precision: int = 8, height: bytes = b"\0\x18") -> bytes:
    offset = jpeg.find(b"\xff\xc0")
    frame = bytes((0xFF, marker)) + jpeg[offset + 2 : offset + 4] + bytes((precision,)) + height
    return jpeg[:offset] + frame + jpeg[offset + 7 :]


def rejection(content: bytes, max_pixels: int = LIMIT) -> RejectedError:
    with pytest.raises(RejectedError) as caught:
        decode(content, max_pixels=max_pixels)
    return caught.value


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (frame_of(encoded(gradient(), "JPEG"), 0xC1, 12), "unsupported", "12-bit"),
        (frame_of(encoded(gradient(), "JPEG"), 0xC3), "truncated", "broken data"),
        (frame_of(encoded(gradient(), "JPEG"), 0xC0, height=b"\0\0"), "truncated", "broken header"),
        (png(1, 1, 8, 2, b"\0abc", chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**21)))), "too_complex", "too large"),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 4, 2, 1, 24, 5, 0, 0, 0, 0, 0), "unsupported", "compression"),
        (tiff(1, b"\0" * 8, 64, 1), "unsupported", "pixel mode"),
    ],
    ids=["12 bit", "lossless", "no height", "profile", "png in bmp", "64 bit tiff"],
)  # fmt: skip
def test_what_no_decoder_takes_is_told_from_what_is_broken(content, reason, detail):
    error = rejection(content)
    assert (error.reason, detail in error.detail) == (reason, True), error.detail


def test_a_frame_that_a_gif_leaves_behind_is_not_made_before_its_size_is_checked():
    """Pillow fills 4 GB for these 43 bytes when it opens them."""
    control = b"!\xf9\x04\x08\0\0\0\0"
    content = (
        b"GIF89a\x05\0\x05\0\x80\0\0abcdef"
        + control
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;"
    )
    error = rejection(content, max_pixels=64_000_000)
    assert (error.reason, error.detail.endswith("by the header")) == (Reason.TOO_MANY_PIXELS, True)
    # Also after a larger limit was in use, and the ordinary message for what is between the two.
    small = encoded(Image.new("L", (10, 10)), "PNG")
    decode(small, max_pixels=200_000_000)
    error = rejection(content, max_pixels=64_000_000)
    assert (error.reason, error.detail.endswith("by the header")) == (Reason.TOO_MANY_PIXELS, True)


@pytest.mark.parametrize(
    ("width", "tile", "tiles"),
    [(16, (1024, 1024), None), (16, (1024, 1025), 1), (16, (1025, 1024), 1), (1025, (1024, 1024), 2)],
)  # fmt: skip
def test_tiles_count_whole_however_little_of_them_the_image_covers(width, tile, tiles):
    entries = [(256, width), (257, 16), (258, 8), (259, 1), (262, 1), (273, 146), (277, 1), (278, 16), (279, 16 * width), (322, tile[0]), (323, tile[1])]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    content = b"II*\0" + struct.pack("<IH", 8, 11) + table + bytes(4 + 16 * width)
    if tiles is None:
        assert decode(content, max_pixels=LIMIT).shape == (16, width, 3)
    else:
        error = rejection(content)
        detail = f"{tiles} tiles of {tile[0]} x {tile[1]} pixels; limit {LIMIT}"
        assert (error.reason, error.detail) == (Reason.TOO_MANY_PIXELS, detail)


def test_scans_are_counted_up_to_the_image_s_end_only():
    photo = encoded(noise(2000, 2000).convert("L"), "JPEG", progressive=True)
    assert decode(photo, max_pixels=10_000_000).shape == (2000, 2000, 3)
    start = photo.rfind(b"\xff\xda")
    scans = photo[start:-2] * 250
    error = rejection(photo[:start] + scans + photo[-2:], max_pixels=10_000_000)
    assert (error.reason, "scans" in error.detail) == (Reason.TOO_COMPLEX, True)
    # Behind the end they are never decoded.
    assert decode(photo + scans, max_pixels=10_000_000).shape == (2000, 2000, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_progressive_jpeg_as_libjpeg_writes_it_is_never_too_complex(mode):
    content = encoded(Image.new(mode, (7900, 8000)), "JPEG", progressive=True)
    assert headers.check_jpeg(content) == (7900, 8000, True)
