"""Measures of a model on labelled images."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy, macro-averaged F1 and the figures of each class.

    Parameters
    ----------
    probabilities: float (N, classes).
    labels: int (N,), indices into `classes`.

    Returns
    -------
    n, accuracy, macro_f1, per_class: {class: {precision, recall, f1, support}}. A ratio whose
    denominator is zero counts as 0, as in scikit-learn's `zero_division=0`.
    """
    from sklearn.metrics import precision_recall_fscore_support

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
        "accuracy": float((predicted == labels).mean()) if len(labels) else None,
        "macro_f1": float(np.mean(columns[2])),
        "per_class": per_class,
    }


def anomaly_metrics(
    scores: np.ndarray, anomalous: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    """Ranking measures, and the rates at a threshold.

    Parameters
    ----------
    scores: float (N,), larger is more anomalous.
    anomalous: bool (N,).
    threshold: scores from here on are flagged; None leaves the rates undefined.

    Returns
    -------
    n, auroc, average_precision, threshold, tpr, tnr; None where a figure needs both kinds of
    image, or one that is not there.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    both = 0 < anomalous.sum() < len(anomalous)
    flagged = scores >= threshold if threshold is not None else None
    return {
        "n": len(scores),
        "auroc": float(roc_auc_score(anomalous, scores)) if both else None,
        "average_precision": float(average_precision_score(anomalous, scores)) if both else None,
        "threshold": threshold,
        "tpr": _share(flagged, anomalous),
        "tnr": _share(None if flagged is None else ~flagged, ~anomalous),
    }


def _share(hits: np.ndarray | None, among: np.ndarray) -> float | None:
    return float(hits[among].mean()) if hits is not None and among.any() else None


def score_reference(values: np.ndarray, bins: int = 10) -> dict[str, list[float]]:
    """A distribution to compare a night with: inner bin edges at quantiles, and shares.

    Returns
    -------
    edges: strictly increasing, at most bins - 1; shares: one more than edges, summing to 1. A
    value equal to an edge belongs to the bin above it, as in Postgres' `width_bucket`.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}
