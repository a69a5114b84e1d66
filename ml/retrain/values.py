"""The values that the steps of a retrain DAG exchange, and what they store with the run.

Between steps a value is JSON: Airflow keeps it as an XCom, and the command line prints it.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ml.errors import DataError
from ml.evaluation.gate import Champion

Value = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class TakenSnapshot:
    """The result of `snapshot`.

    Attributes:
        model: the name of the model.
        snapshot_uri: of the snapshot of its data set.
    """

    model: str
    snapshot_uri: str


@dataclass(frozen=True)
class TrainRequest(TakenSnapshot):
    """What `train` takes.

    Attributes:
        repeats: the id of a run whose recorded configuration is used; None: the configuration.
    """

    repeats: str | None = None


@dataclass(frozen=True)
class TrainedRun:
    """The result of `train` and of `evaluate`.

    Attributes:
        model: the name of the model.
        run_id: the training run in MLflow.
    """

    model: str
    run_id: str


@dataclass(frozen=True)
class GatedRun(TrainedRun):
    """The result of `gate`.

    Attributes:
        passed: whether the gate lets the version become champion.
    """

    passed: bool


@dataclass(frozen=True)
class RegisteredVersion:
    """The result of `register`.

    Attributes:
        model: the name of the model.
        run_id: the training run in MLflow.
        version: the registered version.
        passed: whether the gate lets it become champion.
    """

    model: str
    run_id: str
    version: int
    passed: bool


@dataclass(frozen=True)
class PromoteRequest:
    """What `promote` takes.

    Attributes:
        model: the name of the model.
        version: the registered version.
    """

    model: str
    version: int


@dataclass(frozen=True)
class Assessment:
    """What `evaluate` stores with the run, as `evaluation.json`.

    Attributes:
        holdout: the metrics on the held-out images (`ml.evaluation.metrics`).
        test: the metrics on the split test; None if there are no such images.
        champion: the champion on the same held-out images; None if there is none.
        reference: the distribution of the held-out scores
            (`ml.evaluation.metrics.score_reference`).
    """

    holdout: dict[str, Any]
    test: dict[str, Any] | None
    champion: Champion | None
    reference: dict[str, list[float]]


def parse(kind: type[T], value: Value) -> T:
    """Read the value of a step; keys that `kind` does not have are ignored.

    Raises:
        DataError: a key is missing, or its value has the wrong type.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(
            f"This is not the value of a step: {key}: {first['msg']}.",
            "Pass what the step before printed.",
        ) from None
