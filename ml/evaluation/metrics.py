"""Measures of a model on labelled images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy, macro-averaged F1 and the figures of each class.

    Args:
        probabilities: float (N, classes).
        labels: int (N,), indices into `classes`.

    Returns:
        n, accuracy, macro_f1, per_class: {class: {precision, recall, f1, support}}. A ratio whose
        denominator is zero counts as 0, as in scikit-learn's `zero_division=0`. Accuracy and macro
        F1 are NaN when a probability is.
    """
    from sklearn.metrics import precision_recall_fscore_support

    def known(value: float) -> float:
        return float(value) if np.isfinite(probabilities).all() else np.nan

    predicted = probabilities.argmax(axis=1)
    columns = precision_recall_fscore_support(
        labels, predicted, labels=list(range(len(classes))), zero_division=0
    )
    per_class = {
        name: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
    }
    return {
        "n": len(labels),
        "accuracy": known((predicted == labels).mean()) if len(labels) else None,
        "macro_f1": known(np.mean(columns[2])),
        "per_class": per_class,
    }


def anomaly_metrics(
    scores: np.ndarray, anomalous: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    """Ranking measures, and the rates at a threshold.

    Args:
        scores: float (N,), larger is more anomalous.
        anomalous: bool (N,).
        threshold: scores from here on are flagged; None leaves the rates undefined.

    Returns:
        n, auroc, average_precision, threshold, tpr, tnr; None where a figure needs both kinds of
        image, or one that is not there. The ranking measures are NaN when a score is.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    def ranked(measure: Callable[[np.ndarray, np.ndarray], float]) -> float | None:
        if not 0 < anomalous.sum() < len(anomalous):
            return None
        return float(measure(anomalous, scores)) if np.isfinite(scores).all() else np.nan

    flagged = scores >= threshold if threshold is not None else None
    return {
        "n": len(scores),
        "auroc": ranked(roc_auc_score),
        "average_precision": ranked(average_precision_score),
        "threshold": threshold,
        "tpr": _share(flagged, anomalous),
        "tnr": _share(None if flagged is None else ~flagged, ~anomalous),
    }


def _share(hits: np.ndarray | None, among: np.ndarray) -> float | None:
    return float(hits[among].mean()) if hits is not None and among.any() else None


@dataclass(frozen=True)
class Calibration:
    """How often those are right that are said to be right with a certain probability.

    A row a bin of equal width: `confidences` and `rates`, float (bins,), the means of what was
    said and of what was so, NaN in an empty bin; `counts` int (bins,). `error` is the expected
    calibration error, the mean distance of the two over all images.
    """

    confidences: np.ndarray
    rates: np.ndarray
    counts: np.ndarray
    error: float


def calibration(probabilities: np.ndarray, outcomes: np.ndarray, bins: int = 15) -> Calibration:
    """Expected calibration error (Guo et al., "On calibration of modern neural networks", 2017).

    Args:
        probabilities: float (N,) in [0, 1]: a classifier's confidence, an anomaly's score.
        outcomes: bool (N,): whether the class was right, whether the image was anomalous.
    """
    # Bins are open to the left, as in the paper; 0 belongs to the first.
    places = np.clip(np.ceil(probabilities * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    said, so = (np.bincount(places, of, bins) for of in (probabilities, outcomes))
    images = np.where(counts, counts, np.nan)
    error = np.abs(so - said).sum() / max(1, len(probabilities))
    return Calibration(said / images, so / images, counts, float(error))


def score_reference(values: np.ndarray, bins: int = 10) -> dict[str, list[float]]:
    """A distribution to compare a night with: inner bin edges at quantiles, and shares.

    Returns:
        edges: strictly increasing, at most bins - 1; shares: one more than edges, summing to 1. A
        value equal to an edge belongs to the bin above it, as in Postgres' `width_bucket`.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}
