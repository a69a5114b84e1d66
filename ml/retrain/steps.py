"""The steps of a retrain DAG, in order; each can run alone and be repeated.

A step takes the value of the one before, a few names and ids; what else it needs is in the MLflow
run. snapshot → train → evaluate → gate → register → promote.
"""

import getpass
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects.postgresql import insert

from ml.config.loading import configuration
from ml.config.schema import Model
from ml.data.snapshot import load_snapshot, take_snapshot
from ml.database.connection import transaction
from ml.database.tables import CHAMPION, ModelVersion
from ml.evaluation.gate import Champion, Decision, decide
from ml.program.info import ConvertedInfo, ProgramInfo
from ml.registry import artifacts, programs, promotion, registration, tracking, versions
from ml.registry.openvino_models import log_openvino_model
from ml.retrain import reproduction
from ml.retrain.model_card import describe

log = logging.getLogger(__name__)

Value = dict[str, Any]
_EVALUATION, _DECISION = tracking.EVALUATION_FILE, "gate.json"
_SNAPSHOT, _SYNTHETIC = tracking.SNAPSHOT_TAG, "nightscore.synthetic"
_REPEATS = tracking.REPEATS_TAG


def snapshot(model: str) -> Value:
    """Take a snapshot of the model's data set: {model, snapshot_uri}."""
    settings = configuration().model(model)
    uri = take_snapshot(
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

    Raises:
        DataError: the data set is missing or too small, or training diverged.
    """
    from ml.training import train as job

    model = value["model"]
    done = tracking.find_finished_run(model, attempt_key)
    if done is not None:
        log.info("This attempt was trained before, in run %s", done)
        return {"model": model, "run_id": done}
    repeated = reproduction.recording(model, value["repeats"]) if "repeats" in value else None
    settings = repeated.settings if repeated else configuration().model(model)
    threads = int(repeated.environment["threads"]) if repeated else None
    taken = load_snapshot(value["snapshot_uri"])
    tags = {_SNAPSHOT: taken.uri, _SYNTHETIC: str(taken.synthetic).lower()}
    tags |= {tracking.MODEL_TAG: model} | ({_REPEATS: repeated.run_id} if repeated else {})
    run_id = tracking.start_run(model, attempt_key, tags)
    try:
        with tracking.log_system_metrics(run_id):
            job.run(model, settings, taken, run_id, threads)
    except BaseException:
        tracking.end_run(run_id, failed=True)
        raise
    tracking.end_run(run_id)
    return {"model": model, "run_id": run_id}


def evaluate(value: Value) -> Value:
    """Measure challenger and champion on the same held-out images, and report the test split."""
    from ml.retrain import assessment

    model, run_id = value["model"], value["run_id"]
    tags = tracking.run_tags(run_id)
    taken = load_snapshot(tags[_SNAPSHOT])
    champion = versions.version_of_alias(model, CHAMPION)
    result = assessment.run(model, _settings(model, run_id, tags), taken, run_id, champion)
    tracking.log_json(run_id, _EVALUATION, result)
    return value


def gate(value: Value) -> Value:
    """Decide whether the challenger may be promoted; the decision is stored with the run."""
    model, run_id = value["model"], value["run_id"]
    settings = _settings(model, run_id, tracking.run_tags(run_id))
    found = tracking.read_json(run_id, _EVALUATION)
    decision = decide(settings.gate, settings.task, found["holdout"], _champion(found))
    tracking.log_json(run_id, _DECISION, asdict(decision))
    log.info("Gate: %s: %s", "passed" if decision.passed else "not passed", decision.reason)
    return {**value, "passed": decision.passed}


def register(value: Value) -> Value:
    """Register the run's program as challenger: {model, run_id, version, passed}."""
    model, run_id = value["model"], value["run_id"]
    found = tracking.read_json(run_id, _EVALUATION)
    decision = TypeAdapter(Decision).validate_python(tracking.read_json(run_id, _DECISION))
    tags = tracking.run_tags(run_id)
    path, info = programs.fetch_from_run(run_id)
    converted = _converted(run_id, path, info)
    threshold = _threshold_detail(run_id)
    version = versions.register(
        run_id,
        model,
        {
            **_gate_tags(decision),
            _SNAPSHOT: tags[_SNAPSHOT],
            _SYNTHETIC: tags[_SYNTHETIC],
            **({_REPEATS: tags[_REPEATS]} if _REPEATS in tags else {}),
        },
        describe(
            _settings(model, run_id, tags),
            found["holdout"],
            found["test"],
            _champion(found),
            decision,
            threshold,
            snapshot_uri=tags[_SNAPSHOT],
            synthetic=tags[_SYNTHETIC] == "true",
        ),
    )
    row = {
        "task": info.task,
        "mlflow_run_id": run_id,
        "program_sha256": info.sha256,
        "program": registration.program_info_json(replace(info, model=model, version=version)),
        "snapshot_uri": tags[_SNAPSHOT],
        "metrics": _flat(found),
        "threshold": info.threshold,
        "threshold_detail": threshold,
        "novelty_threshold": info.novelty_threshold,
        "classes": list(info.classes),
        "reference_edges": found["reference"]["edges"],
        "reference_shares": found["reference"]["shares"],
        "synthetic": info.synthetic,
        "gate_passed": decision.passed,
        "gate_reason": decision.reason,
        "gate": asdict(decision),
        "openvino_sha256": converted.sha256 if converted else None,
        "openvino_version": converted.openvino if converted else None,
    }
    with transaction() as session:
        statement = insert(ModelVersion).values(model=model, version=version, **row)
        session.execute(
            statement.on_conflict_do_update(index_elements=["model", "version"], set_=row)
        )
    promotion.set_challenger(model, version)
    log.info("%s is registered as version %s: %s", model, version, versions.ui_url(model, version))
    return {"model": model, "run_id": run_id, "version": version, "passed": decision.passed}


def _converted(run_id: str, path: Path, info: ProgramInfo) -> ConvertedInfo | None:
    """Store the form in which CPUs run a run's program; None when OpenVINO cannot run it."""
    from ml.program.selection import convert_program

    form = convert_program(path, info)
    return (
        log_openvino_model(artifacts.logged_model_id_of_run(run_id), form)
        if form is not None
        else None
    )


def promote(value: Value) -> Value:
    """Make the registered version champion: {model, version, replaced, changed}."""
    with transaction() as session:
        reason = session.scalar(
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

    Returns:
        register's value with `promoted`, `repeats` and what `ml.retrain.reproduction.compare`
        found.

    Raises:
        DataError: the run cannot be repeated (`ml.retrain.reproduction.recording`), or its snapshot
            is gone.
    """
    recorded = reproduction.recording(model, run_id)
    value: Value = {"model": model, "snapshot_uri": recorded.snapshot_uri, "repeats": run_id}
    for step in (train, evaluate, gate, register):
        on_step(step.__name__)
        value = step(value)
    compared = reproduction.compare(run_id, value["run_id"])
    return {**value, "promoted": False, "repeats": run_id, **compared}


def _settings(model: str, run_id: str, tags: dict[str, str]) -> Model:
    """The configuration that a run is judged by: today's, or for a repetition the recorded one."""
    if _REPEATS in tags:
        return Model.model_validate(tracking.read_json(run_id, tracking.MODEL_FILE))
    return configuration().model(model)


def _champion(found: Value) -> Champion | None:
    return TypeAdapter(Champion | None).validate_python(found["champion"])


def _gate_tags(decision: Decision) -> dict[str, str]:
    """The decision on the version's page; what was not compared has no tag."""
    numbers = {
        "value": decision.challenger,
        "champion_value": decision.champion,
        "difference": decision.difference,
        "lower_bound": decision.lower,
        "confidence": decision.confidence,
        "p_value": decision.p_value,
        "images": decision.n,
    }
    return {
        "nightscore.gate": "passed" if decision.passed else "not passed",
        "nightscore.gate_reason": decision.reason,
        "nightscore.gate_metric": decision.metric,
        **{f"nightscore.gate_{key}": f"{x:.6g}" for key, x in numbers.items() if x is not None},
    }


def _flat(found: Value) -> Value:
    """The held-out metrics, and those of the test split with the prefix test_; None for what is
    no number, which JSON in Postgres cannot say.
    """
    test = {f"test_{key}": item for key, item in (found["test"] or {}).items()}
    return {
        key: item if item is not None and math.isfinite(item) else None
        for key, item in (found["holdout"] | test).items()
        if not isinstance(item, dict)
    }


def _threshold_detail(run_id: str) -> dict[str, Any] | None:
    """The run's `ml.training.thresholds.ChosenThreshold`; None for a classifier, and for a run from
    before thresholds had intervals.
    """
    found: dict[str, Any] | None = programs.program_metadata(run_id).get("threshold")
    return found if found and "asked" in found else None
