"""The built-in sample images."""

import hashlib

import pytest
from PIL import Image

from ml.data import samples


def _digest(folder) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_the_same_images_are_generated_every_time_and_named_synthetic(tmp_path):
    first = samples.write(tmp_path / "a")
    samples.write(tmp_path / "b")
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b")
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 4000
    assert all(path.name.startswith("synthetic-") for path in files)
    classes = sorted(path.name for path in (first.datasets["cifar10"] / "train").iterdir())
    assert len(classes) == 10
    assert [path.name for path in sorted((first.datasets["cifar10"] / "test").iterdir())] == classes
    for path in (first.datasets["spill"] / "test" / "anomalous").iterdir():
        Image.open(path).verify()
    assert len(list(first.broken["spill"].iterdir())) == 3
