"""What each image of a snapshot is for."""

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
    draw = random.Random(seed)
    return [
        (
            _object(f"{number}.png", draw.randrange(150)),
            draw.choice([TRAIN, TRAIN, TRAIN, CALIBRATION, TEST]),
            draw.choice(["normal", "anomalous"]),
        )
        for number in range(400)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_an_image_and_its_copy_never_straddle_what_trains_and_what_measures(seed):
    parts = defaultdict(set)
    for row in assign(_listing(seed), 0.2):
        parts[row.group].add(row.part)
    for found in parts.values():
        assert found <= {FIT} or found <= {HOLDOUT, THRESHOLD} or found <= {REPORT, EXCLUDED}


def test_a_share_of_train_is_held_out_and_test_is_only_reported():
    listed = [(_object(f"{n}.png", n), TRAIN, "a") for n in range(2000)]
    listed += [(_object(f"t{n}.png", 5000 + n), TEST, "a") for n in range(100)]
    rows = assign(listed, 0.1)
    held = [row for row in rows if row.part == HOLDOUT]
    assert 150 < len(held) < 250
    assert {row.part for row in rows if row.split == TEST} == {REPORT}


def test_what_was_held_out_stays_held_out_when_images_are_added():
    listed = [(_object(f"{n}.png", n), TRAIN, "a") for n in range(300)]
    before = {row.uri: row.part for row in assign(listed, 0.1)}
    more = [(_object(f"new{n}.png", 900 + n), TRAIN, "a") for n in range(300)]
    after = {row.uri: row.part for row in assign(more + listed, 0.1)}
    assert all(after[uri] == part for uri, part in before.items())


def test_the_order_of_the_listing_does_not_matter():
    listed = _listing(1)
    shuffled = listed[:]
    random.Random(2).shuffle(shuffled)
    assert assign(listed, 0.1) == assign(shuffled, 0.1)


def _scene_of(rows, size: int = 5) -> dict[str, dict[str, str]]:
    """Scenes of `size` contents each, the same in both splits."""
    scenes = {split: {} for split in (TRAIN, CALIBRATION)}
    for found, split, _ in rows:
        group = f"{found.etag}-{found.size}"
        if split in scenes:
            scenes[split][group] = f"scene-{int(found.etag, 16) // size:03}"
    return scenes


@pytest.mark.parametrize("seed", range(20))
def test_by_scene_neither_a_scene_nor_a_copy_straddles(seed):
    listed = _listing(seed)
    rows = assign(listed, 0.2, _scene_of(listed))
    parts, scenes = defaultdict(set), defaultdict(set)
    both = {row.group for row in rows if row.split == TRAIN} & {
        row.group for row in rows if row.split == CALIBRATION
    }
    for row in rows:
        parts[row.group].add(row.part)
        # An image that is in train and in calibration goes where the calibration's scene goes.
        if row.part not in (REPORT, EXCLUDED) and (
            row.split == CALIBRATION or row.group not in both
        ):
            scenes[row.split, row.scene].add(row.part)
    for found in parts.values():
        assert found <= {FIT} or found <= {HOLDOUT, THRESHOLD} or found <= {REPORT, EXCLUDED}
    assert len(scenes) > 20
    assert {len(found) for found in scenes.values()} == {1}
    assert {part for found in scenes.values() for part in found} == {FIT, HOLDOUT, THRESHOLD}


def test_by_scene_the_order_of_the_listing_does_not_matter():
    listed = _listing(1)
    shuffled = listed[:]
    random.Random(2).shuffle(shuffled)
    scenes = _scene_of(listed)
    assert assign(listed, 0.1, scenes) == assign(shuffled, 0.1, scenes)


def test_a_single_scene_is_divided_by_image_with_a_warning(caplog):
    listed = [(_object(f"{n}.png", n), TRAIN, "normal") for n in range(200)]
    rows = assign(listed, 0.2, _scene_of(listed, size=1000))
    assert "too few scenes" in caplog.text
    parts = [row.part for row in rows]
    assert parts == [row.part for row in assign(listed, 0.2)]
    assert {row.scene for row in rows} == {"scene-000"}


def test_without_calibration_nothing_is_said_of_it(caplog):
    listed = [(_object(f"{n}.png", n), TRAIN, "normal") for n in range(200)]
    rows = assign(listed, 0.2, _scene_of(listed))
    assert not caplog.records
    assert {row.part for row in rows} == {FIT, HOLDOUT}
    assert 40 <= sum(row.part == HOLDOUT for row in rows) < 46


def test_every_class_keeps_a_scene_to_learn_from():
    listed = [(_object(f"{n}.png", n), TRAIN, "rare" if n < 5 else "usual") for n in range(100)]
    rows = assign(listed, 0.45, _scene_of(listed))
    assert {row.label for row in rows if row.part == FIT} == {"rare", "usual"}
    assert {row.part for row in rows} == {FIT, HOLDOUT}


def test_by_image_the_scene_is_the_image_itself():
    assert all(row.scene == row.group for row in assign(_listing(3), 0.1))


def test_rows_are_selected_by_split_part_and_label():
    def row(name: str, *of: str) -> snapshot.Row:
        return snapshot.Row(f"s3://b/{name}", "e", 100, *of[:2], name, of[2], name)

    one, two = row("1", TRAIN, "cat", FIT), row("2", TRAIN, "dog", HOLDOUT)
    three, four = row("3", TRAIN, "dog", FIT), row("4", TEST, "emu", REPORT)
    taken = snapshot.Snapshot("s3://b/snapshots/d/1f.parquet", "d", (one, two, three, four))
    assert taken.select() == [one, two, three, four]
    assert taken.select(split=TRAIN) == [one, two, three]
    assert taken.select(part=FIT) == [one, three]
    assert taken.select(label="dog") == [two, three]
    assert taken.select(split=TRAIN, part=FIT, label="dog") == [three]
    assert taken.select(split=TEST, label="dog") == []
    assert taken.classes == ("cat", "dog")
    assert taken.hash == "1f"
