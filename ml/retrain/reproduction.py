"""Reproduce a training run from what it recorded, and compare both runs."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ml.config.schema import Model
from ml.errors import DataError
from ml.registry import tracking
from ml.registry.tracking import (
    ENVIRONMENT_FILE,
    EVALUATION_FILE,
    MODEL_FILE,
    MODEL_TAG,
    SNAPSHOT_TAG,
    WEIGHTS_TAG,
)

_RESULT = "repetition.json"


@dataclass(frozen=True)
class Recording:
    """What a run recorded to be reproduced from.

    Attributes:
        run_id: the run in MLflow.
        settings: the configuration of the model.
        snapshot_uri: what it trained on.
        environment: see `ml.training.environment.collect`.
    """

    run_id: str
    settings: Model
    snapshot_uri: str
    environment: dict[str, Any]


def read_recording(model: str, run_id: str) -> Recording:
    """Read what a finished run of a model recorded.

    Raises:
        DataError: there is no such run, it is of another model or has not finished, or its
            recording is incomplete or of another version of Nightscore.
    """
    tags = tracking.run_tags(run_id)
    if (owner := tags.get(MODEL_TAG)) != model:
        raise DataError(f"Run {run_id} is of {owner or 'no model of ours'}, not of {model}.")
    status = tracking.run_status(run_id)
    if status != "FINISHED":
        raise DataError(
            f"Run {run_id} is {status.lower()}: it has nothing to be repeated and compared with.",
            "Choose a run that has finished.",
        )
    if missing := {MODEL_FILE, ENVIRONMENT_FILE, EVALUATION_FILE} - set(
        tracking.list_artifacts(run_id)
    ):
        raise DataError(
            f"Run {run_id} has no {', '.join(sorted(missing))}: it was not evaluated, or trained "
            "by a version of Nightscore that did not record this."
        )
    environment = tracking.read_json(run_id, ENVIRONMENT_FILE)
    try:
        settings = Model.model_validate(tracking.read_json(run_id, MODEL_FILE))
    except ValidationError as error:
        raise DataError(
            f"The configuration that run {run_id} recorded is not one of this version: "
            f"{error.errors()[0]['msg']}.",
            f"Repeat it with the code that it ran from, {environment['code']}.",
        ) from None
    return Recording(run_id, settings, tags[SNAPSHOT_TAG], environment)


def compare(original: str, reproduction: str) -> dict[str, Any]:
    """Compare two runs; the result is also stored with the second one, as `repetition.json`.

    Args:
        original: the id of the run that was reproduced.
        reproduction: the id of the new run.

    Returns:
        circumstances: the environment diff, name → [original, reproduction].
        weights_identical: whether the weights are equal to the bit.
        metrics_identical: whether the metrics that both evaluations have are equal to the bit.
        metrics: those that are not, name → [original, reproduction].
    """
    from ml.training import environment

    runs = (original, reproduction)
    metrics_diff = _diff_metrics(*(tracking.read_json(run_id, EVALUATION_FILE) for run_id in runs))
    environments = (tracking.read_json(run_id, ENVIRONMENT_FILE) for run_id in runs)
    weights, new_weights = (tracking.run_tags(run_id).get(WEIGHTS_TAG) for run_id in runs)
    result = {
        "circumstances": environment.diff(*environments),
        "weights_identical": weights == new_weights,
        "metrics_identical": metrics_diff == {},
        "metrics": metrics_diff or {},
    }
    tracking.log_json(reproduction, _RESULT, {"repeats": original, **result})
    return result


def _diff_metrics(
    evaluation: dict[str, Any], new_evaluation: dict[str, Any]
) -> dict[str, list[float]] | None:
    """The metrics that differ, name → values; None if the evaluations have no metric in common."""
    metrics, new_metrics = _flatten(evaluation), _flatten(new_evaluation)
    common = [name for name in metrics if name in new_metrics]
    if not common:
        return None
    return {
        name: [metrics[name], new_metrics[name]]
        for name in common
        if metrics[name] != new_metrics[name]
    }


def _flatten(evaluation: dict[str, Any]) -> dict[str, float]:
    """The metrics on the held-out and on the test images; nested names are joined by dots."""
    metrics: dict[str, float] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{name}.{key}", inner)
        elif isinstance(value, int | float):
            metrics[name] = value

    for split in ("holdout", "test"):
        visit(split, evaluation[split])
    return metrics
