"""Challenger and champion on the same held-out images, with the pictures of the version's page."""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np

from ml.config.schema import Model
from ml.data.snapshot import Snapshot
from ml.errors import DataError
from ml.evaluation import plots
from ml.evaluation.comparison import compare
from ml.evaluation.evaluate import Evaluation, evaluate
from ml.evaluation.gate import Champion
from ml.evaluation.metrics import Calibration, calibration, score_reference
from ml.program import device
from ml.program.info import CLASSIFICATION
from ml.program.program import Program
from ml.registry import programs, tracking
from ml.retrain import examples
from ml.training import data

log = logging.getLogger(__name__)


def run(
    name: str, model: Model, snapshot: Snapshot, run_id: str, champion: int | None
) -> dict[str, Any]:
    """Evaluate the program of a training run; metrics, tables and plots go to the run.

    The comparison with the champion is made here, where both outputs are at hand; the gate then
    needs its numbers only.

    Returns:
        holdout: its metrics on the held-out images; test: on the split test, or None; champion:
            that of the version `champion` on the same held-out images, as
            `ml.evaluation.gate.Champion`, or None;
        reference: the distribution of the held-out scores
            (`ml.evaluation.metrics.score_reference`).
    """
    parts = data.load(snapshot, model)
    program = Program.load(*programs.fetch_from_run(run_id), device.select_device())
    held = evaluate(program, parts.holdout.pixels, parts.holdout.labels)
    test = evaluate(program, parts.test.pixels, parts.test.labels) if len(parts.test) else None
    found, other = None, None
    if champion:
        found, other = _champion(name, champion, program, parts, held, model.gate.confidence)
    metrics = _metrics(held)
    test_metrics = _metrics(test) if test else None
    tracking.log_metrics(
        run_id, _numbers("holdout", metrics) | _numbers("test", test_metrics or {})
    )
    tracking.log_figures(run_id, _figures(program, parts.holdout, held))
    if "per_class" in metrics:
        rows = [{"class": name} | row for name, row in metrics["per_class"].items()]
        tracking.log_table(run_id, "per_class", rows)
    if champion and other:
        seen = examples.disagreements(program, parts.holdout, held, other, champion)
        tracking.log_figures(run_id, {"disagreements": seen} if seen else {})
    return {
        "holdout": metrics,
        "test": test_metrics,
        "champion": asdict(found) if found else None,
        "reference": score_reference(_reference(held)),
    }


def _reference(held: Evaluation) -> np.ndarray:
    """What a normal night looks like: an anomaly's score says nothing about drift."""
    normal = held.labels == 0
    return (
        held.drift_values[normal]
        if len(held.outputs.scores) and normal.any()
        else held.drift_values
    )


def _champion(
    name: str,
    version: int,
    challenger: Program,
    parts: data.Splits,
    held: Evaluation,
    confidence: float,
) -> tuple[Champion, Evaluation | None]:
    """The champion against the challenger, and its evaluation; None when it has none."""

    def noted(note: str) -> tuple[Champion, None]:
        return Champion(version, None, None, note), None

    try:
        program = programs.load(name, version, challenger.device)
    except DataError as error:
        return noted(f"it cannot be loaded ({error.message})")
    if (program.info.task, program.info.classes) != (challenger.info.task, challenger.info.classes):
        return noted("it has other classes")
    if program.info.input_size != challenger.info.input_size:
        return noted("it takes images of another size")
    other = evaluate(program, parts.holdout.pixels, parts.holdout.labels)
    if not np.isfinite(other.drift_values).all():
        return noted("its outputs are not all numbers")
    return Champion(version, other.metrics, compare(held, other, confidence)), other


def _metrics(measured: Evaluation) -> dict[str, Any]:
    found = _calibration(measured)
    return measured.metrics | ({"calibration_error": found.error} if found else {})


def _calibration(measured: Evaluation) -> Calibration | None:
    """Of a classifier's confidences, or of anomaly scores as probabilities, if there are both
    kinds to tell apart.
    """
    if not len(measured.outputs.scores):
        return calibration(measured.drift_values, measured.predictions == measured.labels)
    if len(np.unique(measured.labels)) < 2:
        return None
    return calibration(measured.outputs.scores, measured.labels == 1)


def _numbers(prefix: str, metrics: dict[str, Any]) -> dict[str, float]:
    return {
        f"{prefix}_{key}": float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float)
    }


def _figures(program: Program, holdout: data.Split, held: Evaluation) -> dict[str, bytes]:
    figures = {
        "worst_predictions": examples.worst(program, holdout, held),
        "right_predictions": examples.right(program, holdout, held),
    }
    classifies = program.info.task == CLASSIFICATION
    if found := _calibration(held):
        axes = ("confidence", "accuracy") if classifies else ("anomaly score", "share anomalous")
        figures["reliability"] = plots.reliability(found, *axes)
    if classifies:
        matrix = plots.confusion_matrix(held.labels, held.predictions, program.info.classes)
        per_class = plots.per_class(held.metrics["per_class"])
        return figures | {"confusion_matrix": matrix, "per_class": per_class}
    judged = held.outputs.scores, held.labels == 1, program.info.threshold or 0.0
    return figures | {
        "rates_by_threshold": plots.rates_by_threshold(*judged),
        "score_histogram": plots.score_histogram(*judged),
    }
