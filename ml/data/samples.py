"""Built-in sample images, which are generated so that Nightscore can be tried anywhere.

The name of every file begins with `synthetic-`, and all results that are computed from such images
are shown as synthetic. There are two data sets: ten classes of shapes, and crops of a line of
moulds with several kinds of anomaly. The same seed generates the same images.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ml.program.info import ANOMALOUS, NORMAL

Generator = np.random.Generator
Point = tuple[float, float]

PREFIX = "synthetic-"
DATASETS = ("cifar10", "spill")

SHAPE_SIZE = 32
SHAPES_TRAIN, SHAPES_TEST = 3000, 600
MOULDS_TRAIN, MOULDS_COPIES = 1200, 60
MOULDS_CALIBRATION, MOULDS_TEST, ANOMALIES_TEST = 60, 250, 48
_OVERSAMPLING = 3


@dataclass(frozen=True)
class Samples:
    """Where the samples are.

    Attributes:
        datasets: data set → its folder, laid out SPLIT/CLASS/FILE.
        broken: data set → a folder of broken files, to be put into a night.
    """

    datasets: dict[str, Path]
    broken: dict[str, Path]


def is_synthetic(uri: str) -> bool:
    """Whether a URI or path is one of the built-in samples."""
    return uri.rsplit("/", 1)[-1].startswith(PREFIX)


def write(folder: Path, seed: int = 20260101) -> Samples:
    """Generate all samples.

    Args:
        folder: where to write them.
        seed: of the random numbers.
    """
    _write_shapes(folder / "cifar10", np.random.default_rng(seed))
    _write_moulds(folder / "spill", np.random.default_rng(seed + 1))
    _write_broken(folder / "spill-broken", np.random.default_rng(seed + 2))
    return Samples({name: folder / name for name in DATASETS}, {"spill": folder / "spill-broken"})


# --- ten classes of shapes ---------------------------------------------------------------------


def _polygon(corners: int, centre: Point, radius: float, rotation: float) -> list[Point]:
    angles = [rotation + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _star(centre: Point, radius: float, rotation: float) -> list[Point]:
    outer = _polygon(5, centre, radius, rotation)
    inner = _polygon(5, centre, radius * 0.42, rotation + 0.63)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _box(centre: Point, radius: float) -> list[Point]:
    x, y = centre
    return [(x - radius, y - radius), (x + radius, y + radius)]


# Draws a shape with a centre, a radius and a rotation.
DrawShape = Callable[[ImageDraw.ImageDraw, Point, float, float], None]


def _crescent(draw: ImageDraw.ImageDraw, centre: Point, radius: float, rotation: float) -> None:
    draw.ellipse(_box(centre, radius), fill=255)
    x = centre[0] + 0.5 * radius * math.cos(rotation)
    y = centre[1] + 0.5 * radius * math.sin(rotation)
    draw.ellipse(_box((x, y), 0.8 * radius), fill=0)


def _cross(draw: ImageDraw.ImageDraw, centre: Point, radius: float, rotation: float) -> None:
    for angle in (rotation, rotation + math.pi / 2):
        dx, dy = radius * math.cos(angle), radius * math.sin(angle)
        ends = [(centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy)]
        draw.line(ends, fill=255, width=round(0.5 * radius))


def _zigzag(draw: ImageDraw.ImageDraw, centre: Point, radius: float, rotation: float) -> None:
    cos, sin = math.cos(rotation), math.sin(rotation)
    points = []
    for step in range(6):
        along, across = radius * (step / 2.5 - 1), radius * (0.5 if step % 2 else -0.5)
        points.append(
            (centre[0] + along * cos - across * sin, centre[1] + along * sin + across * cos)
        )
    draw.line(points, fill=255, width=round(0.28 * radius), joint="curve")


def _stripes(draw: ImageDraw.ImageDraw, centre: Point, radius: float, rotation: float) -> None:
    dx, dy = math.cos(rotation), math.sin(rotation)
    for shift in (-0.7, 0.0, 0.7):
        x, y = centre[0] - shift * radius * dy, centre[1] + shift * radius * dx
        ends = [(x - radius * dx, y - radius * dy), (x + radius * dx, y + radius * dy)]
        draw.line(ends, fill=255, width=round(0.32 * radius))


def _ring(draw: ImageDraw.ImageDraw, centre: Point, radius: float, rotation: float) -> None:
    draw.ellipse(_box(centre, radius), outline=255, width=round(0.38 * radius))


SHAPES: dict[str, DrawShape] = {
    "crescent": _crescent,
    "cross": _cross,
    "disc": lambda draw, centre, radius, rotation: draw.ellipse(_box(centre, radius), fill=255),
    "hexagon": lambda d, c, r, t: d.polygon(_polygon(6, c, r, t), fill=255),
    "ring": _ring,
    "square": lambda d, c, r, t: d.polygon(_polygon(4, c, r, t), fill=255),
    "star": lambda d, c, r, t: d.polygon(_star(c, r, t), fill=255),
    "stripes": _stripes,
    "triangle": lambda d, c, r, t: d.polygon(_polygon(3, c, r, t), fill=255),
    "zigzag": _zigzag,
}


def shape(name: str, random: Generator) -> Image.Image:
    """Generate an RGB image of 32 x 32 pixels with a shape on a noisy background.

    Args:
        name: one of `SHAPES`.
        random: chooses colours, position, size and rotation.
    """
    side = SHAPE_SIZE * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    radius = side * random.uniform(0.22, 0.42)
    low, high = 0.75 * radius, side - 0.75 * radius
    centre = random.uniform(low, high), random.uniform(low, high)
    SHAPES[name](ImageDraw.Draw(mask), centre, radius, random.uniform(0, 2 * math.pi))
    mask = mask.resize((SHAPE_SIZE, SHAPE_SIZE), Image.Resampling.BOX)
    opacity = np.asarray(mask)[..., None] / 255
    background, colour = _two_colours(random)
    texture = _smooth_noise(SHAPE_SIZE, SHAPE_SIZE, random)[..., None] * random.uniform(10, 45)
    pixels = background + texture + opacity * (colour - background)
    pixels = pixels + random.normal(0, random.uniform(4, 16), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _two_colours(random: Generator) -> tuple[np.ndarray, np.ndarray]:
    background = random.uniform(20, 235, 3)
    while True:
        colour = random.uniform(20, 235, 3)
        if np.abs(colour - background).sum() > 130:
            return background, colour


def _smooth_noise(height: int, width: int, random: Generator) -> np.ndarray:
    """Smooth noise of mean 0, about -1 to 1."""
    coarse = random.normal(0, 1, (4, 5)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _write_shapes(folder: Path, random: Generator) -> None:
    for split, count in (("train", SHAPES_TRAIN), ("test", SHAPES_TEST)):
        for index in range(count):
            name = list(SHAPES)[index % len(SHAPES)]
            _save(shape(name, random), folder / split / name / f"synthetic-{index:06}.jpg")


# --- a line of moulds --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mould:
    """A crop with one filled mould.

    Attributes:
        pixels: float (H, W, 3), without light and sensor noise.
        inside: float (H, W) in [0, 1], 1 inside of the mould.
        light: float (H, W, 1), a factor for the brightness.
    """

    pixels: np.ndarray
    inside: np.ndarray
    light: np.ndarray


def mould(random: Generator, kind: str = NORMAL) -> Image.Image:
    """Generate a crop of about 50 x 28 pixels with a mould, seen from above.

    Args:
        random: chooses everything that differs between the images.
        kind: one of `ANOMALIES`; `normal`, which is filled and sometimes occluded; or any other
            word, which is filled and never occluded.
    """
    width, height = int(random.integers(46, 55)), int(random.integers(26, 31))
    filled = _filled_mould(width, height, random)
    pixels = ANOMALIES[kind](filled, random) if kind in ANOMALIES else filled.pixels
    if kind == NORMAL and random.random() < 0.15:
        pixels = _occlude(pixels, random)
    pixels = pixels * filled.light + random.normal(0, random.uniform(1.5, 5), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _filled_mould(width: int, height: int, random: Generator) -> _Mould:
    centre = width * random.uniform(0.42, 0.58), height * random.uniform(0.42, 0.58)
    radii = width * random.uniform(0.3, 0.4), height * random.uniform(0.3, 0.4)
    distance = _superellipse(width, height, centre, radii, random.uniform(2.5, 5))
    inside = 1 / (1 + np.exp((distance - 1) * 18))
    rim = np.exp(-(((distance - 1.12) / 0.09) ** 2))
    metal = np.array([96, 100, 106]) * random.uniform(0.75, 1.2)
    fill = np.array([150, 142, 128]) * random.uniform(0.8, 1.15)
    background = metal + _smooth_noise(height, width, random)[..., None] * 10
    surface = fill + _smooth_noise(height, width, random)[..., None] * 5
    pixels = background * (1 - inside[..., None]) + surface * inside[..., None]
    pixels = pixels + rim[..., None] * random.uniform(18, 40)
    y, x = np.mgrid[0:height, 0:width]
    light = (
        1
        + random.uniform(-0.25, 0.25) * (x / width - 0.5)
        + random.uniform(-0.2, 0.2) * (y / height - 0.5)
    )
    return _Mould(pixels, inside, light[..., None])


def _superellipse(width: int, height: int, centre: Point, radii: Point, power: float) -> np.ndarray:
    """The distance of each pixel to a centre, float (H, W); 1 on a superellipse, less inside."""
    y, x = np.mgrid[0:height, 0:width]
    across = np.abs((x - centre[0]) / radii[0]) ** power
    up = np.abs((y - centre[1]) / radii[1]) ** power
    distance: np.ndarray = (across + up) ** (1 / power)
    return distance


def _spill(filled: _Mould, random: Generator) -> np.ndarray:
    """Put bright, torn, sparkling material over the lip."""
    height, width = filled.inside.shape
    lip = np.argwhere((filled.inside > 0.25) & (filled.inside < 0.75))
    y, x = lip[random.integers(len(lip))] if len(lip) else (height // 2, width // 2)
    radii = random.uniform(5, 11), random.uniform(3.5, 8)
    distance = _superellipse(width, height, (float(x), float(y)), radii, 2)
    distance = distance + random.normal(0, 0.22, (height, width))
    mask = np.clip((1.15 - distance) * 3, 0, 1)[..., None]
    sparkle = np.where(random.random((height, width)) < 0.25, random.uniform(30, 70), -18)
    material = np.array([205, 200, 190]) + sparkle[..., None]
    pixels: np.ndarray = filled.pixels * (1 - mask) + material * mask
    return pixels


def _empty(filled: _Mould, random: Generator) -> np.ndarray:
    """Show the smooth dark inside, with a darker rim."""
    height, width = filled.inside.shape
    y = np.mgrid[0:height, 0:width][0] / height
    hollow = np.array([58, 60, 64]) * random.uniform(0.75, 1.15) * (0.75 + 0.5 * y[..., None])
    inside = filled.inside[..., None]
    rim = np.clip(4 * inside * (1 - inside), 0, 1)
    pixels: np.ndarray = filled.pixels * (1 - inside) + hollow * inside - 35 * rim
    return pixels


def _torn(filled: _Mould, random: Generator) -> np.ndarray:
    """Roughen a part of the fill."""
    height, width = filled.inside.shape
    centre = width * random.uniform(0.35, 0.65), height * random.uniform(0.35, 0.65)
    radii = random.uniform(5, 10), random.uniform(4, 7)
    mask = np.clip(2 * (1.2 - _superellipse(width, height, centre, radii, 2)), 0, 1) * filled.inside
    texture = random.normal(0, random.uniform(26, 42), (height, width))
    pixels: np.ndarray = filled.pixels + (texture * mask)[..., None]
    return pixels


ANOMALIES: dict[str, Callable[[_Mould, Generator], np.ndarray]] = {
    "spill": _spill,
    "empty": _empty,
    "torn": _torn,
}


def _occlude(pixels: np.ndarray, random: Generator) -> np.ndarray:
    """Put a glove or a belt in front of a part of the crop, which is harmless."""
    height, width = pixels.shape[:2]
    image = Image.new("L", (width, height))
    angle = random.uniform(-0.6, 0.6)
    x = random.choice([0.0, float(width)]) + random.normal(0, 4)
    ends = [(x, -5.0), (x + height * math.tan(angle), height + 5.0)]
    ImageDraw.Draw(image).line(ends, fill=255, width=int(random.integers(6, 16)))
    mask = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)))[..., None] / 255
    colour = random.uniform(25, 190, 3)
    return pixels * (1 - mask) + colour * mask


def _write_moulds(folder: Path, random: Generator) -> None:
    normal = folder / "train" / NORMAL
    for index in range(MOULDS_TRAIN):
        _save(mould(random), normal / f"synthetic-{index:06}.jpg")
    for index in range(MOULDS_COPIES):
        # As if the camera sent a frame twice: the same bytes under another name.
        content = (normal / f"synthetic-{index * 7:06}.jpg").read_bytes()
        (normal / f"synthetic-copy-{index:06}.jpg").write_bytes(content)
    for index in range(MOULDS_CALIBRATION):
        name = f"synthetic-{index:06}.jpg"
        _save(mould(random, "spill"), folder / "calibration" / ANOMALOUS / name)
    for index in range(MOULDS_TEST):
        _save(mould(random), folder / "test" / NORMAL / f"synthetic-{index:06}.jpg")
    for index in range(ANOMALIES_TEST):
        kind = list(ANOMALIES)[index % len(ANOMALIES)]
        name = f"synthetic-{kind}-{index:06}.jpg"
        _save(mould(random, kind), folder / "test" / ANOMALOUS / name)


def _write_broken(folder: Path, random: Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "synthetic-empty.jpg").write_bytes(b"")
    (folder / "synthetic-text.jpg").write_text("This is not an image.")
    (folder / "synthetic-truncated.jpg").write_bytes(jpeg(mould(random))[:500])


def jpeg(image: Image.Image) -> bytes:
    """Encode an image as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(image))
