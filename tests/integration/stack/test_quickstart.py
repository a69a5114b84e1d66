"""The main job: where its images come from. Its way through Airflow is tested end to end."""

from concurrent.futures import Future
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import pytest

from ml.cli.progress import show_progress
from ml.config.loading import load
from ml.config.schema import Configuration
from ml.data import dataset
from ml.errors import DataError
from ml.stack import quickstart
from ml.stack.image_sources import ImageSource, draw_samples, find_datasets
from ml.storage.object_store import object_store
from tests.support import synthetic_images

REPOSITORY = Path(__file__).parents[3]
NIGHT = date(2026, 1, 15)


@pytest.fixture
def config(bucket, tmp_path) -> Configuration:
    """The repository's configuration, in a part of the bucket of its own."""
    text = (REPOSITORY / "nightscore.yaml").read_text(encoding="utf-8")
    path = tmp_path / "nightscore.yaml"
    path.write_text(text.replace("s3://nightscore", bucket))
    return load(path)


def _names(prefix: str) -> set[str]:
    return {
        listed.uri.rsplit("/", 1)[-1]
        for page in object_store().list_pages(prefix)
        for listed in page
    }


def test_samples_are_drawn_only_for_data_sets_without_images_of_one_s_own(config, tmp_path):
    synthetic_images.write_dataset(tmp_path / "own", "shades")
    dataset.import_(tmp_path / "own", "cifar10", storage=config.storage)
    lines: list[str] = []
    with ExitStack() as resources:
        source = draw_samples(config, resources, lines.append)
        assert set(source.datasets) == set(source.broken) == {"spill"}
        assert source.imported == {"cifar10"}
    assert "data set cifar10: the images that were imported before are used" in lines
    assert any("SYNTHETIC sample images for spill" in line for line in lines)


def test_samples_leave_a_night_that_other_images_are_brought_into(config, tmp_path):
    samples = tmp_path / "samples" / "test" / "a"
    samples.mkdir(parents=True)
    (samples / "synthetic-1.png").write_bytes(synthetic_images.shade("dark", 1))
    before = ImageSource({"spill": tmp_path / "samples"}, synthetic=True)
    _ingest(before, config)
    night = f"{config.stream('spill').prefix}/dt={NIGHT}"
    assert all(name.startswith("synthetic-") for name in _names(night))
    synthetic_images.write_dataset(tmp_path / "own", "moulds")
    _ingest(ImageSource({"spill": tmp_path / "own"}), config)
    assert len(_names(night)) == 30
    assert not any(name.startswith("synthetic-") for name in _names(night))


def _ingest(source: ImageSource, config: Configuration) -> None:
    with show_progress() as progress:
        steps = quickstart._Job(config, source, NIGHT, Future(), progress, verbose=False)
        steps._ingest("spill", [], [])


def test_a_folder_without_a_known_data_set_is_explained(config, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="cifar10, spill") as caught:
        find_datasets(tmp_path / "data", config)
    assert "SPLIT/CLASS/FILE" in caught.value.hint


def test_wrong_images_are_said_before_anything_is_trained(config, tmp_path):
    synthetic_images.write_dataset(tmp_path / "cifar10", "shades")
    (tmp_path / "spill" / "train").mkdir(parents=True)
    source = ImageSource({"cifar10": tmp_path / "cifar10", "spill": tmp_path / "spill"})
    never_up: Future = Future()
    with show_progress() as progress, pytest.raises(DataError, match="holds no image"):
        quickstart._Job(config, source, NIGHT, never_up, progress, verbose=False).run()
