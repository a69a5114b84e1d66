"""What each image of a snapshot is for."""

import random
from collections import defaultdict
from datetime import UTC, datetime

import pytest

from ml.snapshot import CALIBRATION, EXCLUDED, FIT, HOLDOUT, REPORT, TEST, THRESHOLD, TRAIN, assign
from ml.store import ObjectInfo


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
