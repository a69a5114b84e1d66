"""Two versions on the same labelled images: by how much one is better, and how certain that is.

The interval of a difference is from a paired percentile bootstrap (Efron and Tibshirani, "An
introduction to the bootstrap", 1993, chapter 13): both versions are measured on the same resamples
of the images. Images are resampled within each true class, so that no resample lacks a rare one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ml.evaluation.evaluate import Evaluation

RESAMPLES = 2000
# Fixed, so that a retry of the gate decides the same.
_SEED = 0
# Cells of the largest matrix of resamples x images; each takes 8 bytes, in several arrays.
_MAX_CELLS = 1_000_000

# A metric on each of some resamples, float (B,), from how often each has each image, float (B, N).
_Metric = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """A metric of challenger and champion, and their difference.

    Attributes:
        challenger: the challenger's value.
        champion: the champion's value.
        difference: challenger - champion.
        lower: a one-sided lower bound of the difference.
        upper: a one-sided upper bound of it; each at the comparison's confidence.
    """

    challenger: float
    champion: float
    difference: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Comparison:
    """Challenger and champion on the same images.

    Attributes:
        n: the number of images.
        confidence: of each bound of a difference.
        resamples: of the bootstrap.
        disagreements: how many images they predict differently: as another class, or as flagged.
        p_value: of McNemar's exact test, for classifiers only: how likely a difference in accuracy
            at least as large is between two that are equally good.
        differences: by name of the metric.
    """

    n: int
    confidence: float
    resamples: int
    disagreements: int
    p_value: float | None
    differences: dict[str, Difference]


def compare(challenger: Evaluation, champion: Evaluation, confidence: float) -> Comparison:
    """Compare two evaluations of the same images, in the same order.

    Two equal evaluations differ by exactly 0, with bounds of exactly 0. Bounds are NaN where a
    metric is.

    Args:
        challenger: the new version's evaluation.
        champion: the evaluation to compare with.
        confidence: of each bound of a difference, between 0.5 and 1.

    Returns:
        A comparison with a difference for every metric that both have.
    """
    metrics, champion_metrics = _weighted_metrics(challenger), _weighted_metrics(champion)
    names = [name for name in metrics if _both_have(name, challenger, champion)]
    samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for counts in _bootstrap_counts(challenger.labels, RESAMPLES):
        for name in names:
            samples[name].append(metrics[name](counts) - champion_metrics[name](counts))
    is_right = challenger.predictions == challenger.labels
    champion_is_right = champion.predictions == champion.labels
    is_classifier = len(challenger.outputs.probabilities) > 0
    return Comparison(
        n=len(challenger.labels),
        confidence=confidence,
        resamples=RESAMPLES,
        disagreements=int((challenger.predictions != champion.predictions).sum()),
        p_value=mcnemar(is_right, champion_is_right) if is_classifier else None,
        differences={
            name: _difference(
                challenger.metrics[name],
                champion.metrics[name],
                np.concatenate(samples[name]),
                confidence,
            )
            for name in names
        },
    )


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """McNemar's exact test, a binomial test of the images that only one classifier gets right.

    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947.

    Args:
        one: bool (N,), whether one classifier is right about each image.
        other: bool (N,), whether the other one is.

    Returns:
        The two-sided p-value.
    """
    from scipy.stats import binomtest

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    discordant = only_one + only_other
    return float(binomtest(only_one, discordant).pvalue) if discordant else 1.0


def _both_have(name: str, challenger: Evaluation, champion: Evaluation) -> bool:
    return challenger.metrics[name] is not None and champion.metrics[name] is not None


def _difference(
    challenger: float, champion: float, samples: np.ndarray, confidence: float
) -> Difference:
    difference = challenger - champion
    lower, upper = np.quantile(samples, [1 - confidence, confidence])
    if not np.isfinite(difference):
        lower = upper = np.nan
    return Difference(challenger, champion, difference, float(lower), float(upper))


def _bootstrap_counts(labels: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """How often each image is in each resample, in blocks of resamples.

    Within each class, as many images are drawn with replacement as it has.

    Yields:
        float64 (B, N): B resamples of N images.
    """
    random = np.random.default_rng(_SEED)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    block = max(1, _MAX_CELLS // max(1, len(labels)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        counts = np.empty((rows, len(labels)))
        for images in members:
            size = len(images)
            # Numbered through all rows, so that one bincount serves all of them.
            indices = random.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            frequencies = np.bincount(indices.ravel(), minlength=rows * size)
            counts[:, images] = frequencies.reshape(rows, size)
        yield counts


def _weighted_metrics(evaluation: Evaluation) -> dict[str, _Metric]:
    """The metrics that a gate may compare (`ml.config.schema.GATE_METRICS`), on resamples.

    They are those of `ml.evaluation.metrics`, with each image weighted by how often it is there.
    """
    labels, predictions = evaluation.labels, evaluation.predictions
    if len(evaluation.outputs.probabilities):
        classes = evaluation.outputs.probabilities.shape[1]
        return {
            "accuracy": _rate(predictions == labels, np.ones(len(labels), dtype=bool)),
            "macro_f1": _macro_f1(labels, predictions, classes),
        }
    anomalous, scores = labels == 1, evaluation.outputs.scores
    return {
        "auroc": _auroc(scores, anomalous),
        "average_precision": _average_precision(scores, anomalous),
        "tpr": _rate(predictions == 1, anomalous),
        "tnr": _rate(predictions == 0, ~anomalous),
    }


def _rate(hits: np.ndarray, population: np.ndarray) -> _Metric:
    # A resample has as many images of each class as the original, so the denominator is constant.
    is_counted, total = (hits & population).astype(float), max(1, int(population.sum()))
    return lambda counts: (counts @ is_counted) / total


def _macro_f1(labels: np.ndarray, predictions: np.ndarray, classes: int) -> _Metric:
    from scipy.sparse import csr_array

    images, is_right = np.arange(len(labels)), labels == predictions
    # Sparse matrices (classes, images): one where the image is predicted as the class.
    shape = classes, len(labels)
    predicted_as = csr_array((np.ones(len(labels)), (predictions, images)), shape=shape)
    hits = csr_array((is_right.astype(float), (predictions, images)), shape=shape)
    support = np.bincount(labels, minlength=classes)[:, None]

    def metric(counts: np.ndarray) -> np.ndarray:
        # F1 is 2 TP / (labelled + predicted); 0 for a class that is neither labelled nor predicted.
        denominators = predicted_as @ counts.T + support
        means: np.ndarray = (2 * (hits @ counts.T) / np.maximum(denominators, 1)).mean(axis=0)
        return means

    return metric


def _auroc(scores: np.ndarray, anomalous: np.ndarray) -> _Metric:
    """The share of pairs (anomalous, normal) in the right order; equal scores count as half."""
    normals, anomalies = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
    order = normals[np.argsort(scores[normals], kind="stable")]
    lower = np.searchsorted(scores[order], scores[anomalies], side="left")
    not_higher = np.searchsorted(scores[order], scores[anomalies], side="right")
    pairs = max(1, len(normals) * len(anomalies))

    def metric(counts: np.ndarray) -> np.ndarray:
        normals_below = _cumulative(counts[:, order])
        beaten = (normals_below[:, lower] + normals_below[:, not_higher]) / 2
        shares: np.ndarray = (counts[:, anomalies] * beaten).sum(axis=1) / pairs
        return shares

    return metric


def _average_precision(scores: np.ndarray, anomalous: np.ndarray) -> _Metric:
    """The mean over the anomalous images of the precision at their own score."""
    normals, anomalies = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
    descending = anomalies[np.argsort(-scores[anomalies], kind="stable")]
    normal_order = normals[np.argsort(-scores[normals], kind="stable")]
    true_alarms = np.searchsorted(-scores[descending], -scores[descending], side="right")
    false_alarms = np.searchsorted(-scores[normal_order], -scores[descending], side="right")

    def metric(counts: np.ndarray) -> np.ndarray:
        hits = _cumulative(counts[:, descending])[:, true_alarms]
        flagged = hits + _cumulative(counts[:, normal_order])[:, false_alarms]
        precision = hits / np.maximum(flagged, 1)
        means: np.ndarray = (counts[:, descending] * precision).sum(axis=1)
        return means / max(1, len(descending))

    return metric


def _cumulative(counts: np.ndarray) -> np.ndarray:
    """The sums of the first 0, 1, 2, ... columns."""
    sums = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums
