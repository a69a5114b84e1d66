"""Metrics of a model on labelled images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Compute accuracy, macro-averaged F1 and the metrics of each class.

    Args:
        probabilities: float (N, classes).
        labels: int (N,), indices into `classes`.
        classes: the names of the classes.

    Returns:
        n, accuracy, macro_f1, per_class: {class: {precision, recall, f1, support}}. A ratio whose
        denominator is zero counts as 0, as with scikit-learn's `zero_division=0`. Accuracy and
        macro F1 are NaN if a probability is not finite; accuracy is None without images.
    """
    from sklearn.metrics import precision_recall_fscore_support

    is_finite = np.isfinite(probabilities).all()
    predictions = probabilities.argmax(axis=1)
    columns = precision_recall_fscore_support(
        labels, predictions, labels=list(range(len(classes))), zero_division=0
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
    accuracy = float((predictions == labels).mean()) if len(labels) else None
    return {
        "n": len(labels),
        "accuracy": accuracy if is_finite else np.nan,
        "macro_f1": float(np.mean(columns[2])) if is_finite else np.nan,
        "per_class": per_class,
    }


def anomaly_metrics(
    scores: np.ndarray, anomalous: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    """Compute the ranking metrics, and the rates at a threshold.

    Args:
        scores: float (N,), larger is more anomalous.
        anomalous: bool (N,).
        threshold: scores that are greater or equal are flagged; None: there are no rates.

    Returns:
        n, auroc, average_precision, threshold, tpr, tnr. A metric is None if images of a kind that
        it needs are missing. The ranking metrics are NaN if a score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    def rank(metric: Callable[[np.ndarray, np.ndarray], float]) -> float | None:
        if not 0 < anomalous.sum() < len(anomalous):
            return None
        return float(metric(anomalous, scores)) if np.isfinite(scores).all() else np.nan

    flags = scores >= threshold if threshold is not None else None
    return {
        "n": len(scores),
        "auroc": rank(roc_auc_score),
        "average_precision": rank(average_precision_score),
        "threshold": threshold,
        "tpr": _rate(flags, anomalous),
        "tnr": _rate(None if flags is None else ~flags, ~anomalous),
    }


def _rate(hits: np.ndarray | None, population: np.ndarray) -> float | None:
    return float(hits[population].mean()) if hits is not None and population.any() else None


@dataclass(frozen=True)
class Calibration:
    """How well probabilities agree with how often the outcome is true, by bins of equal width.

    Attributes:
        confidences: float (bins,), the mean probability of each bin; NaN in an empty one.
        rates: float (bins,), the share of true outcomes; NaN in an empty bin.
        counts: int (bins,), the number of images.
        error: the expected calibration error: the mean over all images of |confidence - rate|.
    """

    confidences: np.ndarray
    rates: np.ndarray
    counts: np.ndarray
    error: float


def calibration(probabilities: np.ndarray, outcomes: np.ndarray, bins: int = 15) -> Calibration:
    """Compute the expected calibration error.

    From Guo et al., "On calibration of modern neural networks", 2017.

    Args:
        probabilities: float (N,) in [0, 1]: a classifier's confidence, an anomaly's score.
        outcomes: bool (N,): whether the class was right, whether the image was anomalous.
        bins: the number of bins.
    """
    # Bins are open on the left, as in the paper; 0 belongs to the first one.
    bin_indices = np.clip(np.ceil(probabilities * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(bin_indices, minlength=bins)
    predicted = np.bincount(bin_indices, probabilities, bins)
    observed = np.bincount(bin_indices, outcomes, bins)
    divisors = np.where(counts, counts, np.nan)
    error = np.abs(observed - predicted).sum() / max(1, len(probabilities))
    return Calibration(predicted / divisors, observed / divisors, counts, float(error))


def score_reference(values: np.ndarray, bins: int = 10) -> dict[str, list[float]]:
    """Describe a distribution, to compare those of nights with it.

    Args:
        values: float (N,).
        bins: the number of bins at most, with about equal shares.

    Returns:
        edges: the inner edges of the bins, at quantiles, strictly increasing; shares: one more than
        edges, with the sum 1. A value equal to an edge belongs to the bin above it, as in Postgres'
        `width_bucket`.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}
