"""The steps of a retrain DAG, in order; each can run alone and be repeated.

A step takes the value of the one before, a few names and ids; what else it needs is in the MLflow
run. snapshot → train → evaluate → gate → register → promote.
"""

import getpass
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ml import promotion, registry
from ml import snapshot as snapshots
from ml.config import Model, configuration
from ml.database import session
from ml.gate import Champion, Decision, decide
from ml.tables import CHAMPION, ModelVersion

log = logging.getLogger(__name__)

Value = dict[str, Any]
_EVALUATION, _DECISION = "evaluation.json", "gate.json"
_SNAPSHOT, _SYNTHETIC = "nightscore.snapshot", "nightscore.synthetic"


def snapshot(model: str) -> Value:
    """Take a snapshot of the model's data set: {model, snapshot_uri}."""
    settings = configuration().model(model)
    uri = snapshots.take(
        settings.dataset,
        configuration().storage,
        holdout_share=settings.holdout_share,
        holdout_by=settings.holdout_by,
    )
    log.info("%s trains on the snapshot %s", model, uri)
    return {"model": model, "snapshot_uri": uri}


def train(value: Value, attempt_key: str | None = None) -> Value:
    """Train on a snapshot and log everything to a run in MLflow: {model, run_id}.

    `attempt_key` names the attempt (Airflow's run id): a retry of one that was finished returns
    its run.

    Raises
    ------
    DataError: the data set is missing or too small, or training diverged.
    """
    from ml.training import job

    model = value["model"]
    done = registry.finished_run(model, attempt_key)
    if done is not None:
        log.info("This attempt was trained before, in run %s", done)
        return {"model": model, "run_id": done}
    settings = configuration().model(model)
    taken = snapshots.load(value["snapshot_uri"])
    tags = {_SNAPSHOT: taken.uri, _SYNTHETIC: str(taken.synthetic).lower()}
    run_id = registry.start_run(model, attempt_key, tags | {"nightscore.model": model})
    try:
        job.run(model, settings, taken, run_id)
    except BaseException:
        registry.end_run(run_id, failed=True)
        raise
    registry.end_run(run_id)
    return {"model": model, "run_id": run_id}


def evaluate(value: Value) -> Value:
    """Measure challenger and champion on the same held-out images, and report the test split."""
    from ml.training import assessment

    model, run_id = value["model"], value["run_id"]
    taken = snapshots.load(registry.run_tags(run_id)[_SNAPSHOT])
    champion = registry.version_of_alias(model, CHAMPION)
    result = assessment.run(model, configuration().model(model), taken, run_id, champion)
    registry.log_json(run_id, _EVALUATION, result)
    return value


def gate(value: Value) -> Value:
    """Decide whether the challenger may be promoted; the decision is stored with the run."""
    model, run_id = value["model"], value["run_id"]
    settings = configuration().model(model)
    found = registry.read_json(run_id, _EVALUATION)
    champion = Champion(**found["champion"]) if found["champion"] else None
    decision = decide(settings.gate, settings.task, found["holdout"], champion)
    registry.log_json(run_id, _DECISION, asdict(decision))
    log.info("Gate: %s: %s", "passed" if decision.passed else "not passed", decision.reason)
    return {**value, "passed": decision.passed}


def register(value: Value) -> Value:
    """Register the run's program as challenger: {model, run_id, version, passed}."""
    model, run_id = value["model"], value["run_id"]
    found = registry.read_json(run_id, _EVALUATION)
    decision = Decision(**registry.read_json(run_id, _DECISION))
    tags = registry.run_tags(run_id)
    _, info = registry.program_of_run(run_id)
    version = registry.register(
        run_id,
        model,
        {
            "nightscore.gate": "passed" if decision.passed else "not passed",
            "nightscore.gate_reason": decision.reason,
            _SNAPSHOT: tags[_SNAPSHOT],
            _SYNTHETIC: tags[_SYNTHETIC],
        },
        _description(configuration().model(model), found, decision, tags),
    )
    row = {
        "task": info.task,
        "mlflow_run_id": run_id,
        "program_sha256": info.sha256,
        "snapshot_uri": tags[_SNAPSHOT],
        "metrics": _flat(found),
        "threshold": info.threshold,
        "classes": list(info.classes),
        "reference_edges": found["reference"]["edges"],
        "reference_shares": found["reference"]["shares"],
        "synthetic": info.synthetic,
        "gate_passed": decision.passed,
        "gate_reason": decision.reason,
    }
    with session() as current:
        statement = insert(ModelVersion).values(model=model, version=version, **row)
        current.execute(
            statement.on_conflict_do_update(index_elements=["model", "version"], set_=row)
        )
    promotion.set_challenger(model, version)
    log.info("%s is registered as version %s: %s", model, version, registry.ui_url(model, version))
    return {"model": model, "run_id": run_id, "version": version, "passed": decision.passed}


def promote(value: Value) -> Value:
    """Make the registered version champion: {model, version, replaced, changed}."""
    with session() as current:
        reason = current.scalar(
            sa.select(ModelVersion.gate_reason).where(
                ModelVersion.model == value["model"], ModelVersion.version == value["version"]
            )
        )
    return asdict(
        promotion.promote(
            value["model"], value["version"], reason=f"gate passed: {reason}", by=getpass.getuser()
        )
    )


def retrain(model: str, on_step: Callable[[str], None] = lambda step: None) -> Value:
    """All the steps in this process; returns register's value with `promoted` added."""
    value: Value = {"model": model}
    on_step("snapshot")
    value = snapshot(model)
    for step in (train, evaluate, gate, register):
        on_step(step.__name__)
        value = step(value)
    if value["passed"]:
        on_step("promote")
        promote(value)
    return {**value, "promoted": value["passed"]}


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    """The held-out metrics, and those of the test split with the prefix test_."""
    test = {f"test_{key}": item for key, item in (found["test"] or {}).items()}
    return {
        key: item for key, item in (found["holdout"] | test).items() if not isinstance(item, dict)
    }


def _description(
    settings: Model, found: dict[str, Any], decision: Decision, tags: dict[str, str]
) -> str:
    """The text of the version's page: where it comes from, how it did, and what the gate said."""
    held = {k: v for k, v in found["holdout"].items() if isinstance(v, int | float)}
    test = {k: v for k, v in (found["test"] or {}).items() if isinstance(v, int | float)}
    table = [f"| {key} | {_number(held[key])} | {_number(test.get(key))} |" for key in held]
    banner = "**SYNTHETIC SAMPLE DATA: drawn by Nightscore, says nothing of a real line.**\n\n"
    verdict = "passed" if decision.passed else "NOT passed, not promoted"
    return (
        (banner if tags[_SYNTHETIC] == "true" else "")
        + f"**Gate {verdict}:** {decision.reason}\n\n"
        + f"{settings.task}, architecture {settings.architecture}, snapshot `{tags[_SNAPSHOT]}`\n\n"
        + "| metric | held-out images | test split (reported only) |\n| --- | --- | --- |\n"
        + "\n".join(table)
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
