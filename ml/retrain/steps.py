"""The steps of a retrain DAG, in order: snapshot → train → evaluate → gate → register → promote.

Each step can run alone and can be repeated. It takes the value of the step before
(`ml.retrain.values`), which has only names and ids; everything else is in the run in MLflow.
"""

import getpass
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects.postgresql import insert

from ml.config.loading import configuration
from ml.config.schema import Model
from ml.data.snapshot import load_snapshot, take_snapshot
from ml.database.advisory import SNAPSHOTS, TRAINING_RUN, in_use
from ml.database.connection import transaction
from ml.database.tables import CHAMPION, ModelVersion
from ml.evaluation.gate import Decision, decide
from ml.program.info import ConvertedInfo, ProgramInfo
from ml.registry import artifacts, programs, promotion, registration, tracking, versions
from ml.registry.openvino_models import log_openvino_model
from ml.retrain import model_card, reproduction
from ml.retrain.values import (
    Assessment,
    GatedRun,
    PromoteRequest,
    RegisteredVersion,
    TakenSnapshot,
    TrainedRun,
    TrainRequest,
    Value,
    parse,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
_DECISION = "gate.json"
_SYNTHETIC_TAG = "nightscore.synthetic"


def snapshot(model: str) -> Value:
    """Take a snapshot of the model's data set; returns a `TakenSnapshot`."""
    settings = configuration().model(model)
    # A snapshot of before may have passed its limit, and be about to be deleted.
    with in_use(SNAPSHOTS, settings.dataset):
        uri = take_snapshot(
            settings.dataset,
            configuration().storage,
            holdout_share=settings.holdout_share,
            holdout_by=settings.holdout_by,
        )
    log.info("%s trains on the snapshot %s", model, uri)
    return asdict(TakenSnapshot(model, uri))


def train(value: Value, idempotency_key: str | None = None) -> Value:
    """Train a model; everything about it goes to a run in MLflow.

    Args:
        value: a `TrainRequest`.
        idempotency_key: names the attempt (Airflow's run id). If a training with the same key has
            finished, its run is returned, so that a retried task does not train again.

    Returns:
        A `TrainedRun`.

    Raises:
        DataError: the data set is missing or too small, or the training diverged.
    """
    from ml.training.train import run

    request = parse(TrainRequest, value)
    model = request.model
    finished = tracking.find_finished_run(model, idempotency_key)
    if finished is not None:
        log.info("This attempt was trained before, in run %s", finished)
        return asdict(TrainedRun(model, finished))
    original = reproduction.read_recording(model, request.repeats) if request.repeats else None
    settings = original.settings if original else configuration().model(model)
    threads = int(original.environment["threads"]) if original else None
    images = load_snapshot(request.snapshot_uri)
    tags = {
        tracking.SNAPSHOT_TAG: images.uri,
        _SYNTHETIC_TAG: str(images.synthetic).lower(),
        tracking.MODEL_TAG: model,
        **({tracking.REPEATS_TAG: original.run_id} if original else {}),
    }
    run_id = tracking.start_run(model, idempotency_key, tags)
    try:
        with tracking.log_system_metrics(run_id):
            run(model, settings, images, run_id, threads)
    except BaseException:
        tracking.end_run(run_id, failed=True)
        raise
    tracking.end_run(run_id)
    return asdict(TrainedRun(model, run_id))


def evaluate(value: Value) -> Value:
    """Measure challenger and champion on the same held-out images, and report the split test.

    Args:
        value: a `TrainedRun`.

    Returns:
        The same.
    """
    from ml.retrain.assessment import assess

    run = parse(TrainedRun, value)
    tags = tracking.run_tags(run.run_id)
    images = load_snapshot(tags[tracking.SNAPSHOT_TAG])
    champion = versions.version_of_alias(run.model, CHAMPION)
    assessment = assess(run.model, _settings(run, tags), images, run.run_id, champion)
    tracking.log_json(run.run_id, tracking.EVALUATION_FILE, asdict(assessment))
    return asdict(run)


def gate(value: Value) -> Value:
    """Decide whether the challenger may be promoted; the decision is stored with the run.

    Args:
        value: a `TrainedRun`.

    Returns:
        A `GatedRun`.
    """
    run = parse(TrainedRun, value)
    settings = _settings(run, tracking.run_tags(run.run_id))
    assessment = _read_document(Assessment, run.run_id, tracking.EVALUATION_FILE)
    decision = decide(settings.gate, settings.task, assessment.holdout, assessment.champion)
    tracking.log_json(run.run_id, _DECISION, asdict(decision))
    log.info("Gate: %s: %s", "passed" if decision.passed else "not passed", decision.reason)
    return asdict(GatedRun(run.model, run.run_id, decision.passed))


def register(value: Value) -> Value:
    """Register the run's program as a version, which becomes the challenger.

    Args:
        value: a `TrainedRun` or `GatedRun`.

    Returns:
        A `RegisteredVersion`.
    """
    run = parse(TrainedRun, value)
    # A run of before may have passed its limit, and be about to be deleted.
    with in_use(TRAINING_RUN, run.run_id):
        return asdict(_register(run))


def _register(run: TrainedRun) -> RegisteredVersion:
    model, run_id = run.model, run.run_id
    assessment = _read_document(Assessment, run_id, tracking.EVALUATION_FILE)
    decision = _read_document(Decision, run_id, _DECISION)
    tags = tracking.run_tags(run_id)
    path, info = programs.fetch_from_run(run_id)
    conversion = _store_conversion(run_id, path, info)
    threshold = _threshold(run_id)
    card = model_card.render(
        _settings(run, tags),
        assessment,
        decision,
        threshold,
        snapshot_uri=tags[tracking.SNAPSHOT_TAG],
        synthetic=tags[_SYNTHETIC_TAG] == "true",
    )
    version = versions.register(run_id, model, _version_tags(decision, tags), card)
    _store_version(
        model,
        version,
        {
            "task": info.task,
            "mlflow_run_id": run_id,
            "program_sha256": info.sha256,
            "program": registration.program_info_json(replace(info, model=model, version=version)),
            "snapshot_uri": tags[tracking.SNAPSHOT_TAG],
            "metrics": _flatten_metrics(assessment),
            "threshold": info.threshold,
            "threshold_detail": threshold,
            "novelty_threshold": info.novelty_threshold,
            "classes": list(info.classes),
            "reference_edges": assessment.reference["edges"],
            "reference_shares": assessment.reference["shares"],
            "synthetic": info.synthetic,
            "gate_passed": decision.passed,
            "gate_reason": decision.reason,
            "gate": asdict(decision),
            "openvino_sha256": conversion.sha256 if conversion else None,
            "openvino_version": conversion.openvino if conversion else None,
        },
    )
    promotion.set_challenger(model, version)
    log.info("%s is registered as version %s: %s", model, version, versions.ui_url(model, version))
    return RegisteredVersion(model, run_id, version, decision.passed)


def promote(value: Value) -> Value:
    """Make the registered version the champion.

    Args:
        value: a `PromoteRequest`, or a `RegisteredVersion`, which has its keys.

    Returns:
        model, version, replaced, changed: see `ml.registry.promotion.promote`.
    """
    request = parse(PromoteRequest, value)
    with transaction() as session:
        reason = session.scalar(
            sa.select(ModelVersion.gate_reason).where(
                ModelVersion.model == request.model, ModelVersion.version == request.version
            )
        )
    promoted = promotion.promote(
        request.model, request.version, reason=f"gate passed: {reason}", by=getpass.getuser()
    )
    return asdict(promoted)


def retrain(model: str, on_step: Callable[[str], None] = lambda step: None) -> Value:
    """Run all steps in this process.

    Args:
        model: the name of the model.
        on_step: is called with the name of each step before it runs.

    Returns:
        A `RegisteredVersion`, with `promoted` added.
    """
    on_step("snapshot")
    version = _train_to_register(snapshot(model), on_step)
    if version.passed:
        on_step("promote")
        promote(asdict(version))
    return {**asdict(version), "promoted": version.passed}


def reproduce(model: str, run_id: str, on_step: Callable[[str], None] = lambda step: None) -> Value:
    """Train, evaluate, gate and register again from what a run recorded.

    The configuration of today is not used. The version stays challenger, whatever the gate decides:
    it shows that the run can be reproduced, and an old snapshot is no reason to replace a champion.

    Args:
        model: the name of the model.
        run_id: the run in MLflow.
        on_step: is called with the name of each step before it runs.

    Returns:
        A `RegisteredVersion`, with `promoted`, `repeats` and the result of
        `ml.retrain.reproduction.compare` added.

    Raises:
        DataError: the run cannot be reproduced (`ml.retrain.reproduction.read_recording`), or its
            snapshot is gone.
    """
    original = reproduction.read_recording(model, run_id)
    request = TrainRequest(model, original.snapshot_uri, repeats=run_id)
    version = _train_to_register(asdict(request), on_step)
    comparison = reproduction.compare(run_id, version.run_id)
    return {**asdict(version), "promoted": False, "repeats": run_id, **comparison}


def _train_to_register(value: Value, on_step: Callable[[str], None]) -> RegisteredVersion:
    for step in (train, evaluate, gate, register):
        on_step(step.__name__)
        value = step(value)
    return parse(RegisteredVersion, value)


def _read_document(kind: type[T], run_id: str, name: str) -> T:
    """Read a JSON document that a step stored with the run."""
    return TypeAdapter(kind).validate_python(tracking.read_json(run_id, name))


def _settings(run: TrainedRun, tags: dict[str, str]) -> Model:
    """The configuration that a run is judged by; for a reproduction the one that it recorded."""
    if tracking.REPEATS_TAG in tags:
        return Model.model_validate(tracking.read_json(run.run_id, tracking.MODEL_FILE))
    return configuration().model(run.model)


def _store_conversion(run_id: str, path: Path, info: ProgramInfo) -> ConvertedInfo | None:
    """Convert a program to the form that CPUs run, and store it; None if OpenVINO cannot run it."""
    from ml.program.selection import convert_program

    conversion = convert_program(path, info)
    return (
        log_openvino_model(artifacts.logged_model_id_of_run(run_id), conversion)
        if conversion is not None
        else None
    )


def _store_version(model: str, version: int, row: dict[str, Any]) -> None:
    """Insert the row of a version, or update it if the step is repeated."""
    statement = insert(ModelVersion).values(model=model, version=version, **row)
    with transaction() as session:
        session.execute(
            statement.on_conflict_do_update(index_elements=["model", "version"], set_=row)
        )


def _version_tags(decision: Decision, run_tags: dict[str, str]) -> dict[str, str]:
    """The tags of a version in MLflow; a number of the gate that was not compared has none."""
    numbers = {
        "value": decision.challenger,
        "champion_value": decision.champion,
        "difference": decision.difference,
        "lower_bound": decision.lower,
        "confidence": decision.confidence,
        "p_value": decision.p_value,
        "images": decision.n,
    }
    copied = (tracking.SNAPSHOT_TAG, _SYNTHETIC_TAG, tracking.REPEATS_TAG)
    return {
        "nightscore.gate": "passed" if decision.passed else "not passed",
        "nightscore.gate_reason": decision.reason,
        "nightscore.gate_metric": decision.metric,
        **{f"nightscore.gate_{key}": f"{x:.6g}" for key, x in numbers.items() if x is not None},
        **{tag: run_tags[tag] for tag in copied if tag in run_tags},
    }


def _flatten_metrics(assessment: Assessment) -> dict[str, float | None]:
    """The metrics for Postgres; those on the split test have the prefix `test_`.

    NaN and infinity, which its JSON cannot store, become None.
    """
    test = {f"test_{key}": value for key, value in (assessment.test or {}).items()}
    return {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in (assessment.holdout | test).items()
        if not isinstance(value, dict)
    }


def _threshold(run_id: str) -> dict[str, Any] | None:
    """The run's `ml.training.thresholds.ChosenThreshold` as JSON.

    None for a classifier, and for a run of an older version, whose thresholds had no intervals.
    """
    threshold: dict[str, Any] | None = programs.program_metadata(run_id).get("threshold")
    return threshold if threshold and "asked" in threshold else None
