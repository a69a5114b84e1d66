"""What each image of a snapshot is used for."""

import logging
import random
from collections import defaultdict
from datetime import UTC, datetime

import pytest

from ml.data import snapshot
from ml.data.snapshot import (
    CALIBRATION,
    EXCLUDED,
    FIT,
    HOLDOUT,
    REPORT,
    TEST,
    THRESHOLD,
    TRAIN,
    assign,
)
from ml.storage.object_store import ObjectInfo


def _object(name: str, content: int) -> ObjectInfo:
    return ObjectInfo(f"s3://b/{name}", f"{content:032x}", 100, datetime(2026, 1, 1, tzinfo=UTC))


def _listing(seed: int) -> list[tuple[ObjectInfo, str, str]]:
    """Images of which many are copies of one another, across splits and classes."""
    generator = random.Random(seed)
    return [
        (
            _object(f"{number}.png", generator.randrange(150)),
            generator.choice([TRAIN, TRAIN, TRAIN, CALIBRATION, TEST]),
            generator.choice(["normal", "anomalous"]),
        )
        for number in range(400)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_an_image_and_its_copy_are_never_both_trained_on_and_held_out(seed):
    parts = defaultdict(set)
    for row in assign(_listing(seed), 0.2):
        parts[row.group].add(row.part)
    for values in parts.values():
        assert values <= {FIT} or values <= {HOLDOUT, THRESHOLD} or values <= {REPORT, EXCLUDED}


def test_a_share_of_train_is_held_out_and_test_is_only_reported():
    listing = [(_object(f"{n}.png", n), TRAIN, "a") for n in range(2000)]
    listing += [(_object(f"t{n}.png", 5000 + n), TEST, "a") for n in range(100)]
    rows = assign(listing, 0.1)
    assert 150 < sum(row.part == HOLDOUT for row in rows) < 250
    assert {row.part for row in rows if row.split == TEST} == {REPORT}


def test_an_image_stays_held_out_when_images_are_added():
    listing = [(_object(f"{n}.png", n), TRAIN, "a") for n in range(300)]
    before = {row.uri: row.part for row in assign(listing, 0.1)}
    more = [(_object(f"new{n}.png", 900 + n), TRAIN, "a") for n in range(300)]
    after = {row.uri: row.part for row in assign(more + listing, 0.1)}
    assert all(after[uri] == part for uri, part in before.items())


def test_the_order_of_the_listing_does_not_matter():
    listing = _listing(1)
    shuffled = listing[:]
    random.Random(2).shuffle(shuffled)
    assert assign(listing, 0.1) == assign(shuffled, 0.1)


def _scenes_of(listing, size: int = 5) -> dict[str, dict[str, str]]:
    """Scenes of `size` contents each, the same in both splits."""
    scenes = {split: {} for split in (TRAIN, CALIBRATION)}
    for image, split, _ in listing:
        group = f"{image.etag}-{image.size}"
        if split in scenes:
            scenes[split][group] = f"scene-{int(image.etag, 16) // size:03}"
    return scenes


@pytest.mark.parametrize("seed", range(20))
def test_with_scenes_neither_a_scene_nor_a_copy_is_both_trained_on_and_held_out(seed):
    listing = _listing(seed)
    rows = assign(listing, 0.2, _scenes_of(listing))
    parts, scenes = defaultdict(set), defaultdict(set)
    both = {row.group for row in rows if row.split == TRAIN} & {
        row.group for row in rows if row.split == CALIBRATION
    }
    for row in rows:
        parts[row.group].add(row.part)
        # For an image in both train and calibration, its scene in calibration decides.
        if row.part not in (REPORT, EXCLUDED) and (
            row.split == CALIBRATION or row.group not in both
        ):
            scenes[row.split, row.scene].add(row.part)
    for values in parts.values():
        assert values <= {FIT} or values <= {HOLDOUT, THRESHOLD} or values <= {REPORT, EXCLUDED}
    assert len(scenes) > 20
    assert {len(values) for values in scenes.values()} == {1}
    assert {part for values in scenes.values() for part in values} == {FIT, HOLDOUT, THRESHOLD}


def test_with_scenes_the_order_of_the_listing_does_not_matter():
    listing = _listing(1)
    shuffled = listing[:]
    random.Random(2).shuffle(shuffled)
    scenes = _scenes_of(listing)
    assert assign(listing, 0.1, scenes) == assign(shuffled, 0.1, scenes)


def test_of_a_single_scene_images_are_held_out_with_a_warning(caplog):
    listing = [(_object(f"{n}.png", n), TRAIN, "normal") for n in range(200)]
    rows = assign(listing, 0.2, _scenes_of(listing, size=1000))
    assert "too few scenes" in caplog.text
    parts = [row.part for row in rows]
    assert parts == [row.part for row in assign(listing, 0.2)]
    assert {row.scene for row in rows} == {"scene-000"}


def test_without_calibration_there_is_no_warning(caplog):
    listing = [(_object(f"{n}.png", n), TRAIN, "normal") for n in range(200)]
    rows = assign(listing, 0.2, _scenes_of(listing))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {row.part for row in rows} == {FIT, HOLDOUT}
    assert 40 <= sum(row.part == HOLDOUT for row in rows) < 46


def test_every_class_keeps_a_scene_to_learn_from():
    listing = [(_object(f"{n}.png", n), TRAIN, "rare" if n < 5 else "usual") for n in range(100)]
    rows = assign(listing, 0.45, _scenes_of(listing))
    assert {row.label for row in rows if row.part == FIT} == {"rare", "usual"}
    assert {row.part for row in rows} == {FIT, HOLDOUT}


def test_without_scenes_the_scene_is_the_group():
    assert all(row.scene == row.group for row in assign(_listing(3), 0.1))


def test_rows_are_selected_by_split_part_and_label():
    def row(name: str, split: str, label: str, part: str) -> snapshot.Row:
        return snapshot.Row(f"s3://b/{name}", "e", 100, split, label, name, part, name)

    one, two = row("1", TRAIN, "cat", FIT), row("2", TRAIN, "dog", HOLDOUT)
    three, four = row("3", TRAIN, "dog", FIT), row("4", TEST, "emu", REPORT)
    listed = snapshot.Snapshot("s3://b/snapshots/d/1f.parquet", "d", (one, two, three, four))
    assert listed.select() == [one, two, three, four]
    assert listed.select(split=TRAIN) == [one, two, three]
    assert listed.select(part=FIT) == [one, three]
    assert listed.select(label="dog") == [two, three]
    assert listed.select(split=TRAIN, part=FIT, label="dog") == [three]
    assert listed.select(split=TEST, label="dog") == []
    assert listed.classes == ("cat", "dog")
    assert listed.hash == "1f"
