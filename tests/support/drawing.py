"""Tiny images for tests: quick to draw, easy to learn."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16


def png(array: np.ndarray) -> bytes:
    """A PNG of uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def shade(label: str, number: int) -> bytes:
    """An image that is `dark` or `light`, with noise of its own."""
    random = np.random.default_rng([number, len(label)])
    level = 50 if label == "dark" else 190
    return png((level + random.integers(-30, 30, (SIZE, SIZE, 3))).astype(np.uint8))


def mould(kind: str, number: int) -> bytes:
    """A grey plate, `normal` or with a bright patch."""
    random = np.random.default_rng([number, len(kind)])
    array = 100 + random.integers(-10, 10, (SIZE, SIZE, 3))
    if kind != "normal":
        y, x = random.integers(2, 9, 2)
        array[y : y + 5, x : x + 5] += 120
    return png(array.astype(np.uint8))


def write_dataset(folder: Path, name: str) -> None:
    """The data set `shades` or `moulds`, laid out SPLIT/CLASS/FILE."""
    parts = {
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
    draw = shade if name == "shades" else mould
    number = 0
    for split, label, count in parts[name]:
        target = folder / split / label
        target.mkdir(parents=True)
        for _ in range(count):
            number += 1
            (target / f"{number:04}.png").write_bytes(draw(label, number))


def bright(count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, H, W), every second of which is bright, and labels int64 (N,)."""
    labels = np.arange(count, dtype=np.int64) % 2
    noise = np.random.default_rng(0).integers(0, 60, (count, 3, *size))
    return (noise + 150 * labels[:, None, None, None]).astype(np.uint8), labels
