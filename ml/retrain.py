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

from ml import promotion, registry, repetition
from ml import snapshot as snapshots
from ml.config import Model, configuration
from ml.database import session
from ml.gate import Champion, Decision, decide
from ml.tables import CHAMPION, ModelVersion

log = logging.getLogger(__name__)

Value = dict[str, Any]
_EVALUATION, _DECISION = repetition.EVALUATION, "gate.json"
_SNAPSHOT, _SYNTHETIC = repetition.SNAPSHOT_TAG, "nightscore.synthetic"
_REPEATS = repetition.REPEATS_TAG


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

    With `repeats` in the value, the id of an earlier run, it is trained as that one recorded.
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
    repeated = repetition.recording(model, value["repeats"]) if "repeats" in value else None
    settings = repeated.settings if repeated else configuration().model(model)
    threads = int(repeated.environment["threads"]) if repeated else None
    taken = snapshots.load(value["snapshot_uri"])
    tags = {_SNAPSHOT: taken.uri, _SYNTHETIC: str(taken.synthetic).lower()}
    tags |= {repetition.MODEL_TAG: model} | ({_REPEATS: repeated.run_id} if repeated else {})
    run_id = registry.start_run(model, attempt_key, tags)
    try:
        job.run(model, settings, taken, run_id, threads)
    except BaseException:
        registry.end_run(run_id, failed=True)
        raise
    registry.end_run(run_id)
    return {"model": model, "run_id": run_id}


def evaluate(value: Value) -> Value:
    """Measure challenger and champion on the same held-out images, and report the test split."""
    from ml.training import assessment

    model, run_id = value["model"], value["run_id"]
    tags = registry.run_tags(run_id)
    taken = snapshots.load(tags[_SNAPSHOT])
    champion = registry.version_of_alias(model, CHAMPION)
    result = assessment.run(model, _settings(model, run_id, tags), taken, run_id, champion)
    registry.log_json(run_id, _EVALUATION, result)
    return value


def gate(value: Value) -> Value:
    """Decide whether the challenger may be promoted; the decision is stored with the run."""
    model, run_id = value["model"], value["run_id"]
    settings = _settings(model, run_id, registry.run_tags(run_id))
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
            **({_REPEATS: tags[_REPEATS]} if _REPEATS in tags else {}),
        },
        _description(_settings(model, run_id, tags), found, decision, tags),
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


def repeat(model: str, run_id: str, on_step: Callable[[str], None] = lambda step: None) -> Value:
    """Train, evaluate, gate and register again what a run recorded, not today's configuration.

    The version stays challenger, whatever the gate says: it shows that the run can be repeated, and
    an old snapshot is no reason to replace a champion.

    Returns
    -------
    register's value with `promoted`, `repeats` and what `ml.repetition.compare` found.

    Raises
    ------
    DataError: the run cannot be repeated (`ml.repetition.recording`), or its snapshot is gone.
    """
    recorded = repetition.recording(model, run_id)
    value: Value = {"model": model, "snapshot_uri": recorded.snapshot_uri, "repeats": run_id}
    for step in (train, evaluate, gate, register):
        on_step(step.__name__)
        value = step(value)
    compared = repetition.compare(run_id, value["run_id"])
    return {**value, "promoted": False, "repeats": run_id, **compared}


def _settings(model: str, run_id: str, tags: dict[str, str]) -> Model:
    """The configuration that a run is judged by: today's, or for a repetition the recorded one."""
    if _REPEATS in tags:
        return Model.model_validate(registry.read_json(run_id, repetition.MODEL))
    return configuration().model(model)


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
