"""How many groups a night's shards make."""

import pytest

from ml.scoring.groups import automatic_groups, split

# Seconds to start and images per second of a process: what docs/configuration.md says.
_START_S, _IMAGES_PER_S = {"cpu": 2, "cuda": 8}, {"cpu": 5_500, "cuda": 15_000}
_SHARD = 50_000


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("shards", [1, 2, 3, 24, 30, 100, 500])
def test_starting_takes_less_than_a_tenth_of_a_task_if_the_night_is_large_enough(device, shards):
    groups = split(list(range(shards)), automatic_groups(shards * _SHARD, device, gpus=0))
    start_s = len(groups) * _START_S[device]
    scoring_s = shards * _SHARD / _IMAGES_PER_S[device]
    assert len(groups) == 1 or start_s / (start_s + scoring_s) < 0.1


def test_each_gpu_has_a_group_even_if_starting_takes_longer():
    assert len(split(list(range(10)), automatic_groups(500_000, "cuda", gpus=1))) == 1
    assert len(split(list(range(10)), automatic_groups(500_000, "cuda", gpus=4))) == 4
    assert len(split(list(range(3)), automatic_groups(150_000, "cuda", gpus=8))) == 3


@pytest.mark.parametrize(("shards", "groups"), [(1, 1), (5, 2), (24, 5), (7, 7), (3, 9), (500, 20)])
def test_groups_hold_each_shard_once_in_order_and_are_of_nearly_one_size(shards, groups):
    numbers = list(range(100, 100 + shards))
    result = split(numbers, groups)
    assert [number for group in result for number in group] == numbers
    assert len(result) == min(shards, groups)
    assert max(map(len, result)) - min(map(len, result)) <= 1
