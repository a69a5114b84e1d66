"""The model of `nightscore capacity`: linear, monotone, and in the units that it says."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.capacity.costs import Costs, default_rate
from ml.capacity.plan import Demand, make_plan, postgres_bytes, scoring_seconds, shard_size
from ml.scoring.discovery import MAX_SHARDS

NUMBERS = st.integers(1, 500_000_000)
RATES = st.floats(1, 100_000)
COSTS = Costs(cpu_images_per_second=1000, shard_seconds=2, outside_seconds_per_image=1e-5)


@given(images=st.integers(1, 100_000_000), times=st.integers(1, 10))
def test_rows_bytes_and_requests_grow_with_the_images(images, times):
    one, more = (make_plan(Demand(count, 1000), COSTS) for count in (images, times * images))
    assert more.rows_per_night == times * one.rows_per_night
    assert more.bytes_read == times * one.bytes_read
    assert more.get_requests == times * one.get_requests
    assert more.postgres_bytes_per_year == pytest.approx(times * one.postgres_bytes_per_year)
    assert more.network_mbit_per_second >= times * one.network_mbit_per_second * (1 - 1e-9)
    assert more.serial_s == pytest.approx(times * one.serial_s)


@given(images=NUMBERS, more=NUMBERS, rate=RATES)
def test_more_images_never_need_fewer_workers_or_less_time(images, more, rate):
    costs = replace(COSTS, cpu_images_per_second=rate)
    small, large = (make_plan(Demand(count, 1), costs) for count in (images, images + more))
    assert small.one_worker_s - small.shards * 2 <= large.one_worker_s - large.shards * 2
    if large.workers is not None:
        assert small.workers is not None
        # A night has a few shards more or less by rounding, which is less than a worker.
        assert small.workers <= large.workers + 1


@given(images=NUMBERS, rate=RATES, hours=st.floats(0.5, 24))
def test_the_workers_finish_within_the_hours(images, rate, hours):
    costs = replace(COSTS, cpu_images_per_second=rate)
    plan = make_plan(Demand(images, 1, hours), costs)
    if plan.workers is None:
        assert plan.serial_s >= hours * 3600
        return
    scoring = plan.one_worker_s - plan.serial_s
    assert plan.serial_s + scoring / plan.workers <= hours * 3600 * (1 + 1e-9)
    if plan.workers > 1:  # one less is too few
        assert plan.serial_s + scoring / (plan.workers - 1) > hours * 3600 * (1 - 1e-9)


@given(images=NUMBERS, rate=RATES, workers=st.integers(1, 1000))
def test_a_night_has_at_most_so_many_shards_as_airflow_maps(images, rate, workers):
    size = shard_size(images, rate, workers)
    assert 1 <= -(-images // size) <= MAX_SHARDS


def test_the_units_are_those_that_are_stated():
    costs = Costs(
        cpu_images_per_second=1000, shard_seconds=2, outside_seconds_per_image=0,
        rejected_share=0, heatmap_share=0.01,
    )  # fmt: skip
    plan = make_plan(Demand(3_600_000, 1_000_000, hours=1, keep_nights=1000), costs)
    assert plan.gets_per_second == 1000
    assert plan.prefixes == 1
    assert plan.network_mbit_per_second == 8000  # 1,000 MB per second
    assert plan.list_requests == 4 * 3600
    assert plan.put_requests == 36_001
    assert plan.postgres_bytes_per_night == 3_600_000 * (393 + 127 + 160)
    assert plan.one_worker_s == 3600 + 2 * plan.shards
    assert plan.workers == 2
    assert plan.gpus is None
    assert plan.lock_slots == 16_000


def test_each_model_of_a_stream_adds_a_prediction_and_each_rejection_takes_its_place():
    one, two = (postgres_bytes(1000, replace(COSTS, models=models)) for models in (1, 2))
    assert two - one == pytest.approx(999 * 160 + 200)
    assert scoring_seconds(1000, 3, 100, COSTS) == 16


def test_no_number_of_workers_helps_when_listing_takes_longer_than_the_hours():
    assert make_plan(Demand(10**9, 1, hours=1), COSTS).workers is None


def test_the_default_rate_passes_through_what_the_readme_states():
    assert default_rate(1_000) == pytest.approx(5539, rel=0.06)
    assert default_rate(360_000) == pytest.approx(274, rel=0.06)
