"""Data sets, nights and snapshots in a real S3."""

import io
import os
import tarfile
from collections import defaultdict
from datetime import date

import numpy as np
import pytest

from ml.config.schema import Stream
from ml.data import cifar10, dataset, ingest, snapshot
from ml.errors import DataError, ServiceError
from ml.settings import Settings
from ml.storage import clients
from ml.storage.object_store import ObjectStore, object_store
from tests.support import synthetic_images

NIGHT = date(2026, 1, 15)


@pytest.fixture
def folder(tmp_path):
    synthetic_images.write_dataset(tmp_path / "shades", "shades")
    return tmp_path / "shades"


def _keys(prefix: str) -> set[str]:
    return {
        image.uri.removeprefix(prefix)
        for page in object_store().list_pages(prefix)
        for image in page
    }


class TestImport:
    def test_a_tar_is_stored_as_split_class_file(self, bucket, folder, tmp_path):
        with tarfile.open(tmp_path / "shades.tar", "w") as tar:
            tar.add(folder, "any/name")
        result = dataset.import_(tmp_path / "shades.tar", "shades", storage=bucket)
        assert (result.images, result.uploaded, result.skipped) == (180, 180, 0)
        assert result.classes["train/dark"] == 80
        keys = _keys(f"{bucket}/datasets/shades")
        assert len(keys) == 180
        assert "/train/dark/0001.png" in keys

    def test_a_repeated_import_uploads_only_what_is_missing_or_changed(self, bucket, folder):
        dataset.import_(folder, "shades", storage=bucket)
        object_store().delete([f"{bucket}/datasets/shades/train/dark/0001.png"])
        (folder / "train" / "dark" / "0002.png").write_bytes(synthetic_images.shade("dark", 999))
        result = dataset.import_(folder, "shades", storage=bucket)
        assert (result.uploaded, result.skipped) == (2, 178)
        content, _ = object_store().get(f"{bucket}/datasets/shades/train/dark/0002.png")
        assert content == synthetic_images.shade("dark", 999)

    def test_replace_removes_what_the_source_does_not_have(self, bucket, folder):
        dataset.import_(folder, "shades", storage=bucket)
        (folder / "train" / "dark" / "0001.png").unlink()
        result = dataset.import_(folder, "shades", storage=bucket)
        assert (result.removed, len(_keys(f"{bucket}/datasets/shades"))) == (0, 180)
        result = dataset.import_(folder, "shades", storage=bucket, replace=True)
        assert (result.removed, len(_keys(f"{bucket}/datasets/shades"))) == (1, 179)

    def test_a_tar_cut_short_is_an_error_and_the_whole_one_can_be_imported_after_it(
        self, bucket, folder, tmp_path
    ):
        whole, cut = tmp_path / "whole.tar", tmp_path / "cut.tar"
        with tarfile.open(whole, "w") as tar:
            tar.add(folder, ".")
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(DataError, match="damaged"):
            dataset.import_(cut, "shades", storage=bucket)
        result = dataset.import_(whole, "shades", storage=bucket)
        assert result.images == 180
        assert result.skipped > 0

    def test_images_with_another_layout_are_counted(self, bucket, folder):
        (folder / "cover.png").write_bytes(synthetic_images.shade("dark", 1))
        result = dataset.import_(folder, "shades", storage=bucket)
        assert (result.images, result.left_out) == (180, 1)

    def test_samples_and_other_images_are_told_apart(self, bucket, folder, tmp_path):
        samples = tmp_path / "samples" / "train" / "dark"
        samples.mkdir(parents=True)
        (samples / "synthetic-1.png").write_bytes(synthetic_images.shade("dark", 1))
        assert not dataset.holds_real_images(bucket, "shades")
        dataset.import_(tmp_path / "samples", "shades", storage=bucket)
        assert not dataset.holds_real_images(bucket, "shades")
        dataset.import_(folder, "shades", storage=bucket)
        assert dataset.holds_real_images(bucket, "shades")

    def test_a_source_without_the_layout_is_explained(self, bucket, tmp_path):
        (tmp_path / "1.png").write_bytes(synthetic_images.shade("dark", 1))
        with pytest.raises(DataError, match="SPLIT/CLASS/FILE"):
            dataset.import_(tmp_path, "shades", storage=bucket)

    def test_data_sets_are_summarized(self, bucket, folder):
        assert dataset.summaries(bucket) == []
        dataset.import_(folder, "shades", storage=bucket)
        (summary,) = dataset.summaries(bucket)
        assert (summary.name, summary.images) == ("shades", 180)

    def test_a_download_without_internet_is_a_clear_error(self, tmp_path, monkeypatch):
        # A proxy that refuses every connection, as on a machine without internet.
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(ServiceError, match="cannot be downloaded") as raised:
            cifar10.download(tmp_path)
        assert "nightscore dataset import" in raised.value.hint


class TestIngest:
    def test_images_arrive_under_their_night_and_names_do_not_tell_the_label(self, bucket, folder):
        stream = Stream(prefix=f"{bucket}/streams/s", models=["m"])
        result = ingest.ingest(folder, stream, NIGHT, split="test")
        keys = _keys(f"{bucket}/streams/s/dt=2026-01-15")
        assert result.images == len(keys) == 20
        assert not any("dark" in key or "light" in key for key in keys)
        result = ingest.ingest(folder, stream, NIGHT, split="test")
        assert (result.uploaded, result.skipped) == (0, 20)

    def test_a_folder_of_images_keeps_its_names(self, bucket, tmp_path):
        stream = Stream(prefix=f"{bucket}/streams/s", models=["m"])
        (tmp_path / "camera 1").mkdir()
        (tmp_path / "camera 1" / "a ü #?%.png").write_bytes(b"not even an image")
        ingest.ingest(tmp_path, stream, NIGHT)
        key = f"{bucket}/streams/s/dt=2026-01-15/camera 1/a ü #?%.png"
        assert object_store().get(key)[0] == b"not even an image"

    def test_samples_can_be_removed_from_a_night(self, bucket, tmp_path):
        stream = Stream(prefix=f"{bucket}/streams/s", models=["m"])
        for name in ("synthetic-1.png", "synthetic-2.png", "own.png"):
            (tmp_path / name).write_bytes(synthetic_images.shade("dark", 1))
        ingest.ingest(tmp_path, stream, NIGHT)
        assert ingest.remove_samples(stream, NIGHT) == 2
        assert _keys(f"{bucket}/streams/s/dt=2026-01-15") == {"/own.png"}
        assert ingest.remove_samples(stream, NIGHT) == 0

    def test_nothing_to_ingest_is_an_error(self, bucket, folder, tmp_path):
        stream = Stream(prefix=f"{bucket}/streams/s", models=["m"])
        with pytest.raises(DataError, match="laid out nights/CLASS/FILE"):
            ingest.ingest(folder, stream, NIGHT, split="nights")


class TestSnapshot:
    def test_the_same_images_give_the_same_snapshot_and_other_images_another(self, bucket, folder):
        dataset.import_(folder, "shades", storage=bucket)
        first = snapshot.take_snapshot("shades", bucket, holdout_share=0.1)
        assert snapshot.take_snapshot("shades", bucket, holdout_share=0.1) == first
        object_store().put(
            f"{bucket}/datasets/shades/train/dark/new.png", synthetic_images.shade("dark", 5000)
        )
        second = snapshot.take_snapshot("shades", bucket, holdout_share=0.1)
        assert second != first
        assert len(snapshot.load_snapshot(first).rows) == 180
        assert len(snapshot.load_snapshot(second).rows) == 181

    def test_it_lists_every_image_with_etag_size_split_and_label(self, bucket, folder):
        dataset.import_(folder, "shades", storage=bucket)
        shades = snapshot.load_snapshot(snapshot.take_snapshot("shades", bucket, holdout_share=0.1))
        assert shades.classes == ("dark", "light")
        assert len(shades.select(split="test", label="dark")) == 10
        row = shades.rows[0]
        content, etag = object_store().get(row.uri)
        assert (row.etag, row.size) == (etag, len(content))
        assert not shades.synthetic

    def test_a_data_set_that_is_not_there_is_explained(self, bucket):
        with pytest.raises(DataError, match="nightscore dataset import"):
            snapshot.take_snapshot("nothing", bucket, holdout_share=0.1)


def _write_places(folder, frames: int = 12) -> None:
    """Write frames of ten places of a line and of two spills, and a copy of each first frame."""
    random = np.random.default_rng(0)
    folders = [("train/normal", range(10), frames), ("calibration/anomalous", (20, 21), 6)]
    for name, places, count in folders:
        (folder / name).mkdir(parents=True)
        for place in places:
            picture = np.kron(random.integers(40, 200, (4, 4, 3)), np.ones((4, 4, 1)))
            for number in range(count):
                frame = np.clip(picture + random.normal(0, 2, picture.shape), 0, 255)
                content = synthetic_images.png(frame.astype(np.uint8))
                (folder / name / f"{place:02}-{number:03}.png").write_bytes(content)
                if number == 0:
                    (folder / name / f"copy-{place:02}.png").write_bytes(content)


class TestScenes:
    @pytest.fixture
    def places(self, bucket, tmp_path):
        _write_places(tmp_path / "line")
        dataset.import_(tmp_path / "line", "line", storage=bucket)
        return bucket

    def _take(self, bucket, **options):
        options = {"holdout_share": 0.25, "holdout_by": "scene"} | options
        return snapshot.load_snapshot(snapshot.take_snapshot("line", bucket, **options))

    def test_the_frames_of_a_place_are_held_out_together(self, places):
        parts = defaultdict(set)
        for row in self._take(places).rows:
            place = row.uri.rsplit("/", 1)[-1].removeprefix("copy-")[:2]
            parts[row.split, place].add((row.part, row.scene))
        assert len(parts) == 12
        assert {len(values) for values in parts.values()} == {1}
        part_of_place = [part for values in parts.values() for part, _ in values]
        assert part_of_place.count("holdout") == 3
        assert part_of_place.count("fit") == 7 + 1
        assert part_of_place.count("threshold") == 1

    def test_a_data_set_needs_no_calibration(self, places):
        folder = f"{places}/datasets/line/calibration/anomalous"
        object_store().delete(
            image.uri for page in object_store().list_pages(folder) for image in page
        )
        line = self._take(places)
        assert len(line.select(part="holdout")) == 3 * 13
        assert {row.split for row in line.rows} == {"train"}

    def test_the_same_images_are_read_once(self, places, monkeypatch):
        first = self._take(places)
        monkeypatch.setattr(dataset, "read", None)
        assert self._take(places) == first

    def test_by_image_and_by_scene_are_two_snapshots(self, places):
        by_scene, by_image = self._take(places), self._take(places, holdout_by="image")
        assert by_scene.uri != by_image.uri
        assert self._take(places, holdout_share=0.3).uri != by_scene.uri
        assert all(row.scene == row.group for row in by_image.rows)

    def test_an_image_that_cannot_be_decoded_is_named(self, places):
        uri = f"{places}/datasets/line/train/normal/05-000.png"
        content, _ = object_store().get(uri)
        object_store().put(uri, content[:60])
        with pytest.raises(DataError, match=r"05-000\.png cannot be trained from") as raised:
            self._take(places)
        assert "Remove it" in raised.value.hint

    def test_a_snapshot_without_scenes_of_an_older_version_can_be_loaded(self, places):
        import pyarrow.parquet as parquet

        line = self._take(places, holdout_by="image")
        table = parquet.read_table(io.BytesIO(object_store().get(line.uri)[0]))
        buffer = io.BytesIO()
        parquet.write_table(table.drop_columns(["scene"]), buffer)
        object_store().put(line.uri, buffer.getvalue())
        assert snapshot.load_snapshot(line.uri) == line


def test_a_store_that_cannot_be_reached_is_a_service_error(monkeypatch):
    monkeypatch.setitem(os.environ, "AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = ObjectStore(Settings(AWS_ACCESS_KEY_ID="x" * 20, AWS_SECRET_ACCESS_KEY="y" * 40))
    options = clients.s3_options
    monkeypatch.setattr(
        clients,
        "s3_options",
        lambda settings: options(settings) | {"retry_config": {"max_retries": 0}},
    )
    with pytest.raises(ServiceError, match="object store failed"):
        store.get("s3://nightscore/x")
