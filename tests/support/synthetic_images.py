"""Tiny images for tests, which are generated quickly and are easy to learn."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16


def png(array: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def shade(label: str, number: int) -> bytes:
    """A PNG file that is `dark` or `light`, with other noise for each number."""
    random = np.random.default_rng([number, len(label)])
    level = 50 if label == "dark" else 190
    return png((level + random.integers(-30, 30, (SIZE, SIZE, 3))).astype(np.uint8))


def mould(kind: str, number: int) -> bytes:
    """A PNG file of a grey plate, `normal` or with a bright patch."""
    random = np.random.default_rng([number, len(kind)])
    array = 100 + random.integers(-10, 10, (SIZE, SIZE, 3))
    if kind != "normal":
        y, x = random.integers(2, 9, 2)
        array[y : y + 5, x : x + 5] += 120
    return png(array.astype(np.uint8))


def write_dataset(folder: Path, name: str) -> None:
    """Write the data set `shades` or `moulds`, laid out SPLIT/CLASS/FILE."""
    layouts = {
        "shades": [
            ("train", "dark", 80),
            ("train", "light", 80),
            ("test", "dark", 10),
            ("test", "light", 10),
        ],
        "moulds": [
            ("train", "normal", 150),
            ("calibration", "anomalous", 40),
            ("test", "normal", 20),
            ("test", "anomalous", 10),
        ],
    }
    generate = shade if name == "shades" else mould
    number = 0
    for split, label, count in layouts[name]:
        target = folder / split / label
        target.mkdir(parents=True)
        for _ in range(count):
            number += 1
            (target / f"{number:04}.png").write_bytes(generate(label, number))


def labelled_pixels(count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, H, W), of which every second is bright, and labels int64 (N,)."""
    labels = np.arange(count, dtype=np.int64) % 2
    noise = np.random.default_rng(0).integers(0, 60, (count, 3, *size))
    return (noise + 150 * labels[:, None, None, None]).astype(np.uint8), labels
