"""The arithmetic behind the table of models: rates, spreads over seeds, extrapolated times."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np

from ml.config.schema import Threshold
from ml.evaluation.metrics import anomaly_metrics
from ml.training.thresholds import choose_threshold

Figures = Mapping[str, float | None]
_LEAST_SECONDS = 2.0


def judged(
    policy: Threshold,
    holdout: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> dict[str, float]:
    """Measures of a detector on the test images, at the honest threshold and at the oracle's.

    Args:
        policy: how the honest threshold is chosen, from held-out images alone.
        holdout: float scores (N,) in [0, 1] and int labels (N,), 1 for anomalous.
        test: the same of the test images.

    Returns:
        auroc, average_precision, threshold, tpr, tnr, oracle_tpr, oracle_tnr.
    """
    scores, labels = holdout
    chosen = choose_threshold(policy, scores[labels == 0], scores[labels == 1])
    found = anomaly_metrics(test[0], test[1] == 1, chosen.value)
    tpr, tnr = oracle(test[0], test[1] == 1)
    return {key: value for key, value in found.items() if key != "n"} | {
        "oracle_tpr": tpr,
        "oracle_tnr": tnr,
    }


def oracle(scores: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    """TPR and TNR at the threshold whose balanced accuracy on these very images is the best.

    It is Youden's J (1950). Of several such thresholds the highest counts. Nobody can choose it
    without the labels of the images that are judged: it bounds what another threshold could gain.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(anomalous, scores)
    best = int(np.argmax(tpr - fpr))
    return float(tpr[best]), float(1 - fpr[best])


def unit_scores(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Distances, which have no upper end, as scores in [0, 1]: s / (s + median of `reference`).

    The order stays, and the policy `midpoint`, halfway between logits, becomes halfway between
    the logarithms of the distances, whatever their unit.
    """
    scale = max(float(np.median(reference)), np.finfo(np.float32).tiny)
    return (scores / (scores + scale)).astype(np.float32)


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, min and max over seeds; None where a seed has no value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": mean(known), "min": min(known), "max": max(known)}


def over_seeds(runs: Sequence[Figures]) -> dict[str, dict[str, float] | None]:
    """The spread of each figure that the runs, one for each seed, have."""
    return {key: spread([run[key] for run in runs]) for key in runs[0]}


def epoch_seconds(steps: Sequence[float], images: int, batch_size: int) -> float:
    """The seconds of an epoch, extrapolated from the seconds of some of its steps."""
    return mean(steps) * math.ceil(images / batch_size)


def seconds_to(target: float, epochs: Iterable[tuple[float, float]]) -> float | None:
    """Training seconds until a metric is reached; None when it never is.

    `epochs`: the seconds of each epoch, and the metric after it.
    """
    total = 0.0
    for seconds, reached in epochs:
        total += seconds
        if reached >= target:
            return total
    return None


def images_per_second(run: Callable[[], Any], images: int, least: float = _LEAST_SECONDS) -> float:
    """The rate at which `run` goes through `images` images.

    Runs once to warm up, then for `least` seconds or more.
    """
    run()
    started, passes = time.perf_counter(), 0
    while not passes or time.perf_counter() - started < least:
        run()
        passes += 1
    return passes * images / (time.perf_counter() - started)
