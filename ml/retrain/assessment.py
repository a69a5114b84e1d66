"""Challenger and champion on the same held-out images, with the plots of the version's page."""

import logging
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
from ml.program.device import select_device
from ml.program.info import CLASSIFICATION
from ml.program.program import Program
from ml.registry import programs, tracking
from ml.retrain import examples
from ml.retrain.values import Assessment
from ml.training.data import Split, load

log = logging.getLogger(__name__)


def assess(
    name: str, model: Model, snapshot: Snapshot, run_id: str, champion_version: int | None
) -> Assessment:
    """Evaluate the program of a training run; metrics, tables and plots go to the run.

    Challenger and champion are compared here, where the outputs of both are at hand, so that the
    gate needs nothing but numbers.

    Args:
        name: the model.
        model: its configuration.
        snapshot: the snapshot that the run trained on.
        run_id: the run in MLflow.
        champion_version: the champion; None if there is none.
    """
    splits = load(snapshot, model)
    program = Program.load(*programs.fetch_from_run(run_id), select_device())
    evaluation = evaluate(program, splits.holdout.pixels, splits.holdout.labels)
    test_metrics = None
    if len(splits.test):
        test_metrics = _metrics(evaluate(program, splits.test.pixels, splits.test.labels))
    metrics = _metrics(evaluation)
    _log_metrics(run_id, metrics, test_metrics)
    tracking.log_figures(run_id, _figures(program, splits.holdout, evaluation))
    champion = None
    if champion_version:
        champion, champion_evaluation = _evaluate_champion(
            name, champion_version, program, splits.holdout, evaluation, model.gate.confidence
        )
        if champion_evaluation:
            disagreements = examples.disagreements(
                program, splits.holdout, evaluation, champion_evaluation, champion_version
            )
            tracking.log_figures(run_id, {"disagreements": disagreements} if disagreements else {})
    return Assessment(metrics, test_metrics, champion, score_reference(_normal_values(evaluation)))


def _log_metrics(run_id: str, metrics: dict[str, Any], test_metrics: dict[str, Any] | None) -> None:
    numbers = _with_prefix("holdout", metrics) | _with_prefix("test", test_metrics or {})
    tracking.log_metrics(run_id, numbers)
    if "per_class" in metrics:
        rows = [{"class": name} | row for name, row in metrics["per_class"].items()]
        tracking.log_table(run_id, "per_class", rows)


def _normal_values(evaluation: Evaluation) -> np.ndarray:
    """The values of a normal night: for drift, the scores of known anomalies do not count."""
    values = evaluation.drift_values
    is_normal = evaluation.labels == 0
    is_detector = len(evaluation.outputs.scores) > 0
    return values[is_normal] if is_detector and is_normal.any() else values


def _evaluate_champion(
    name: str,
    version: int,
    challenger: Program,
    holdout: Split,
    evaluation: Evaluation,
    confidence: float,
) -> tuple[Champion, Evaluation | None]:
    """Compare the champion with the challenger; its evaluation is None if that is impossible."""

    def not_comparable(note: str) -> tuple[Champion, None]:
        return Champion(version, None, None, note), None

    try:
        program = programs.load(name, version, challenger.device)
    except DataError as error:
        return not_comparable(f"it cannot be loaded ({error.message})")
    if (program.info.task, program.info.classes) != (challenger.info.task, challenger.info.classes):
        return not_comparable("it has other classes")
    if program.info.input_size != challenger.info.input_size:
        return not_comparable("it takes images of another size")
    champion_evaluation = evaluate(program, holdout.pixels, holdout.labels)
    if not np.isfinite(champion_evaluation.drift_values).all():
        return not_comparable("its outputs are not all numbers")
    comparison = compare(evaluation, champion_evaluation, confidence)
    return Champion(version, champion_evaluation.metrics, comparison), champion_evaluation


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    result = _calibration(evaluation)
    return evaluation.metrics | ({"calibration_error": result.error} if result else {})


def _calibration(evaluation: Evaluation) -> Calibration | None:
    """The calibration of a classifier's confidences, or of anomaly scores as probabilities.

    None for a detector if all images are normal, or all are anomalous.
    """
    scores, labels = evaluation.outputs.scores, evaluation.labels
    if not len(scores):
        return calibration(evaluation.drift_values, evaluation.predictions == labels)
    if len(np.unique(labels)) < 2:
        return None
    return calibration(scores, labels == 1)


def _with_prefix(prefix: str, metrics: dict[str, Any]) -> dict[str, float]:
    return {
        f"{prefix}_{key}": float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float)
    }


def _figures(program: Program, holdout: Split, evaluation: Evaluation) -> dict[str, bytes]:
    figures = {
        "worst_predictions": examples.worst(program, holdout, evaluation),
        "right_predictions": examples.right(program, holdout, evaluation),
    }
    is_classifier = program.info.task == CLASSIFICATION
    if result := _calibration(evaluation):
        labels = (
            ("confidence", "accuracy") if is_classifier else ("anomaly score", "share anomalous")
        )
        figures["reliability"] = plots.reliability(result, *labels)
    if is_classifier:
        matrix = plots.confusion_matrix(
            evaluation.labels, evaluation.predictions, program.info.classes
        )
        per_class = plots.per_class(evaluation.metrics["per_class"])
        return figures | {"confusion_matrix": matrix, "per_class": per_class}
    arguments = evaluation.outputs.scores, evaluation.labels == 1, program.info.threshold or 0.0
    return figures | {
        "rates_by_threshold": plots.rates_by_threshold(*arguments),
        "score_histogram": plots.score_histogram(*arguments),
    }
