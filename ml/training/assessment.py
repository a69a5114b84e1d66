"""Challenger and champion on the same held-out images, with the pictures of the version's page."""

import logging
from typing import Any

import numpy as np
from PIL import Image

from ml import device, heatmap, plots, registry
from ml.config import Model
from ml.errors import DataError
from ml.evaluation import Evaluation, evaluate, predict
from ml.gate import Champion
from ml.metrics import score_reference
from ml.program import CLASSIFICATION, Program
from ml.snapshot import Snapshot
from ml.training import data

log = logging.getLogger(__name__)

EXAMPLES = 24


def run(
    name: str, model: Model, snapshot: Snapshot, run_id: str, champion: int | None
) -> dict[str, Any]:
    """Evaluate the program of a training run; metrics and plots go to the run.

    Returns
    -------
    holdout: its metrics on the held-out images; test: on the split test, or None; champion: that
    of the version `champion` on the same held-out images, as `ml.gate.Champion`, or None;
    reference: the distribution of the held-out scores (`ml.metrics.score_reference`).
    """
    parts = data.load(snapshot, model)
    program = Program.load(*registry.program_of_run(run_id), device.choose())
    held = evaluate(program, parts.holdout.pixels, parts.holdout.labels)
    test = evaluate(program, parts.test.pixels, parts.test.labels) if len(parts.test) else None
    registry.log_metrics(
        run_id, _numbers("holdout", held) | (_numbers("test", test) if test else {})
    )
    registry.log_figures(run_id, _figures(program, parts.holdout, held))
    return {
        "holdout": held.metrics,
        "test": test.metrics if test else None,
        "champion": _champion(name, champion, program, parts) if champion else None,
        "reference": score_reference(_reference(held)),
    }


def _reference(held: Evaluation) -> np.ndarray:
    """What a normal night looks like: an anomaly's score says nothing about drift."""
    normal = held.labels == 0
    return held.values[normal] if len(held.outputs.scores) and normal.any() else held.values


def _champion(name: str, version: int, challenger: Program, parts: data.Parts) -> dict[str, Any]:
    def noted(metrics: dict[str, Any] | None, note: str) -> dict[str, Any]:
        return vars(Champion(version, metrics, note))

    try:
        program = Program.load(*registry.fetch(name, version), challenger.device)
    except DataError as error:
        return noted(None, f"it cannot be loaded ({error.message})")
    if (program.info.task, program.info.classes) != (challenger.info.task, challenger.info.classes):
        return noted(None, "it has other classes")
    if program.info.input_size != challenger.info.input_size:
        return noted(None, "it takes images of another size")
    return noted(evaluate(program, parts.holdout.pixels, parts.holdout.labels).metrics, "")


def _numbers(prefix: str, measured: Evaluation) -> dict[str, float]:
    return {
        f"{prefix}_{key}": float(value)
        for key, value in measured.metrics.items()
        if isinstance(value, int | float)
    }


def _figures(program: Program, holdout: data.Part, held: Evaluation) -> dict[str, bytes]:
    if program.info.task == CLASSIFICATION:
        predicted = held.outputs.probabilities.argmax(axis=1)
        return {
            "confusion_matrix": plots.confusion_matrix(
                held.labels, predicted, program.info.classes
            ),
            "worst_predictions": _worst_classified(program, holdout, held, predicted),
        }
    threshold = program.info.threshold or 0.0
    anomalous = held.labels == 1
    return {
        "rates_by_threshold": plots.rates_by_threshold(held.outputs.scores, anomalous, threshold),
        "score_histogram": plots.score_histogram(held.outputs.scores, anomalous, threshold),
        "worst_predictions": _worst_judged(program, holdout, held),
    }


def _worst_classified(
    program: Program, holdout: data.Part, held: Evaluation, predicted: np.ndarray
) -> bytes:
    """The images whose own class got the least probability."""
    own = held.outputs.probabilities[np.arange(len(held.labels)), held.labels]
    worst = np.argsort(own)[:EXAMPLES]
    classes = program.info.classes
    captions = [
        f"{classes[held.labels[i]]} ({own[i]:.2f})\nseen as {classes[predicted[i]]}" for i in worst
    ]
    return plots.gallery([heatmap.picture(holdout.pixels[i]) for i in worst], captions)


def _worst_judged(program: Program, holdout: data.Part, held: Evaluation) -> bytes:
    """The normal images with the highest and the anomalous ones with the lowest scores."""
    scores, half = held.outputs.scores, EXAMPLES // 2
    order = np.argsort(scores)
    anomalous = [i for i in order if held.labels[i] == 1][:half]
    normal = [i for i in order[::-1] if held.labels[i] == 0][: EXAMPLES - len(anomalous)]
    chosen = np.array(normal + anomalous)
    pixels = np.array(holdout.pixels[chosen])
    heat = predict(program, pixels, heatmaps=True).heatmaps
    names = ("normal", "anomalous")
    captions = [f"{names[held.labels[i]]}\nscore {scores[i]:.4f}" for i in chosen]
    overlaid = [heatmap.overlay(image, warm) for image, warm in zip(pixels, heat, strict=True)]
    return plots.gallery([Image.fromarray(picture) for picture in overlaid], captions)
