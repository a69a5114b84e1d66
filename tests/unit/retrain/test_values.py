"""The values of the steps: their JSON form, which Airflow's history keeps."""

from dataclasses import asdict

import pytest

from ml.errors import DataError
from ml.retrain.values import (
    GatedRun,
    PromoteRequest,
    RegisteredVersion,
    TakenSnapshot,
    TrainedRun,
    TrainRequest,
    parse,
)

VERSION = {"model": "m", "run_id": "r", "version": 3, "passed": True}


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (TakenSnapshot("m", "s3://b/s"), {"model": "m", "snapshot_uri": "s3://b/s"}),
        (TrainedRun("m", "r"), {"model": "m", "run_id": "r"}),
        (GatedRun("m", "r", True), {"model": "m", "run_id": "r", "passed": True}),
        (RegisteredVersion("m", "r", 3, True), VERSION),
    ],
)
def test_a_result_has_these_keys_as_json(result, value):
    assert asdict(result) == value
    assert parse(type(result), value) == result


def test_the_value_of_a_step_may_have_more_keys_than_the_next_step_needs():
    assert parse(TrainedRun, VERSION) == TrainedRun("m", "r")
    assert parse(PromoteRequest, VERSION) == PromoteRequest("m", 3)


def test_a_snapshot_is_trained_on_with_the_configuration_or_as_a_run_recorded():
    snapshot = {"model": "m", "snapshot_uri": "s3://b/s"}
    assert parse(TrainRequest, snapshot).repeats is None
    assert parse(TrainRequest, snapshot | {"repeats": "r"}).repeats == "r"


@pytest.mark.parametrize(
    ("value", "message"),
    [({"model": "m"}, "run_id: Field required"), ({"model": 1, "run_id": "r"}, "model: Input")],
)
def test_a_value_of_another_step_is_explained(value, message):
    with pytest.raises(DataError, match=message) as raised:
        parse(TrainedRun, value)
    assert raised.value.hint == "Pass what the step before printed."
