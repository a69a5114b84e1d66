"""A training run repeated from what it recorded, and compared with itself."""

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


@dataclass(frozen=True)
class Recording:
    """What a run can be repeated from; `environment` is of `ml.training.environment.collect`."""

    run_id: str
    settings: Model
    snapshot_uri: str
    environment: dict[str, Any]


def recording(model: str, run_id: str) -> Recording:
    """What a finished run of a model has recorded.

    Raises:
        DataError: there is no such run, it is of another model or unfinished, or what it recorded
            is missing or of another version of Nightscore.
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


def compare(recorded: str, repeated: str) -> dict[str, Any]:
    """Two runs side by side; the result also goes to the second as `repetition.json`.

    Returns:
        circumstances: what differs in `environment.json`, name → [recorded, now].
        weights_identical: whether the weights are the same to the bit.
        metrics_identical: whether all numbers that both evaluations have are the same to the bit.
        metrics: those that are not, name → [recorded, now].
    """
    from ml.training import environment

    before = _numbers(tracking.read_json(recorded, EVALUATION_FILE))
    now = _numbers(tracking.read_json(repeated, EVALUATION_FILE))
    common = before.keys() & now.keys()
    metrics = {k: [before[k], now[k]] for k in before if k in common and before[k] != now[k]}
    weights = [tracking.run_tags(run_id).get(WEIGHTS_TAG) for run_id in (recorded, repeated)]
    result = {
        "circumstances": environment.diff(
            tracking.read_json(recorded, ENVIRONMENT_FILE),
            tracking.read_json(repeated, ENVIRONMENT_FILE),
        ),
        "weights_identical": weights[0] == weights[1],
        "metrics_identical": bool(common) and not metrics,
        "metrics": metrics,
    }
    tracking.log_json(repeated, "repetition.json", {"repeats": recorded, **result})
    return result


def _numbers(evaluation: dict[str, Any]) -> dict[str, float]:
    """The metrics of the held-out and of the test images, nested names joined by dots."""
    found: dict[str, float] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}", inner)
        elif isinstance(value, int | float):
            found[name] = value

    for part in ("holdout", "test"):
        walk(part, evaluation[part])
    return found
