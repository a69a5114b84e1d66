"""Two versions on the same labelled images: by how much one is better, and how sure that is.

The interval of a difference is a paired percentile bootstrap (Efron and Tibshirani, "An
introduction to the bootstrap", 1993, chapter 13): both versions are measured on the same resamples
of the images. Images are resampled within each true class, so that no resample loses a rare one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ml.evaluation.evaluate import Evaluation

RESAMPLES = 2000
# A retry of the gate has to decide the same.
_SEED = 0
# Cells of a resample x image matrix that are held at once; each takes 8 bytes, a few times over.
_CELLS = 1_000_000

# What a metric is on each of some resamples (B,), from how often each image is in it (B, N).
_Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """A metric of challenger and champion; `lower` and `upper` are one-sided bounds of challenger
    - champion, each at the comparison's confidence.
    """

    challenger: float
    champion: float
    difference: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Comparison:
    """Challenger and champion on the same `n` images; they answer `disagreements` of them
    differently (another class, or flagged by one only).

    `p_value`, of classifiers only, is McNemar's exact test: how likely a difference in accuracy at
    least as large is between two that are equally good.
    """

    n: int
    confidence: float
    resamples: int
    disagreements: int
    p_value: float | None
    differences: dict[str, Difference]


def compare(challenger: Evaluation, champion: Evaluation, confidence: float) -> Comparison:
    """Compare two evaluations of the same images, in the same order.

    Args:
        confidence: of each bound of a difference, between 0.5 and 1.

    Returns:
        A difference for every metric that both have. Two equal evaluations differ by exactly 0,
        with bounds of exactly 0. Bounds are NaN where a metric is.
    """
    ours, theirs = _statistics(challenger), _statistics(champion)
    names = [name for name in ours if _both_have(name, challenger, champion)]
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for counts in _resamples(challenger.labels, RESAMPLES):
        for name in names:
            drawn[name].append(ours[name](counts) - theirs[name](counts))
    right = challenger.answers == challenger.labels, champion.answers == champion.labels
    return Comparison(
        n=len(challenger.labels),
        confidence=confidence,
        resamples=RESAMPLES,
        disagreements=int((challenger.answers != champion.answers).sum()),
        p_value=mcnemar(*right) if len(challenger.outputs.probabilities) else None,
        differences={
            name: _difference(
                challenger.metrics[name],
                champion.metrics[name],
                np.concatenate(drawn[name]),
                confidence,
            )
            for name in names
        },
    )


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """The two-sided p-value of McNemar's exact test (McNemar, 1947): a binomial test of the images
    that only one of two classifiers gets right.

    Args:
        one, other: bool (N,), whether each image was classified correctly.
    """
    from scipy.stats import binomtest

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    discordant = only_one + only_other
    return float(binomtest(only_one, discordant).pvalue) if discordant else 1.0


def _both_have(name: str, challenger: Evaluation, champion: Evaluation) -> bool:
    return challenger.metrics[name] is not None and champion.metrics[name] is not None


def _difference(
    challenger: float, champion: float, drawn: np.ndarray, confidence: float
) -> Difference:
    difference = challenger - champion
    lower, upper = np.quantile(drawn, [1 - confidence, confidence])
    if not np.isfinite(difference):
        lower = upper = np.nan
    return Difference(challenger, champion, difference, float(lower), float(upper))


def _resamples(labels: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """How often each image is in each resample, float64 (B, N), a block of resamples at a time.

    Within every class as many images are drawn, with replacement, as there are.
    """
    random = np.random.default_rng(_SEED)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    block = max(1, _CELLS // max(1, len(labels)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        counts = np.empty((rows, len(labels)))
        for images in members:
            size = len(images)
            # Numbered through all rows, so that one count serves them all.
            drawn = random.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            found = np.bincount(drawn.ravel(), minlength=rows * size)
            counts[:, images] = found.reshape(rows, size)
        yield counts


def _statistics(evaluation: Evaluation) -> dict[str, _Statistic]:
    """The metrics of `ml.evaluation.metrics` that a gate may compare
    (`ml.config.schema.GATE_METRICS`), weighted.
    """
    labels, answers = evaluation.labels, evaluation.answers
    if len(evaluation.outputs.probabilities):
        classes = evaluation.outputs.probabilities.shape[1]
        return {
            "accuracy": _share(answers == labels, np.ones(len(labels), dtype=bool)),
            "macro_f1": _macro_f1(labels, answers, classes),
        }
    anomalous, scores = labels == 1, evaluation.outputs.scores
    return {
        "auroc": _auroc(scores, anomalous),
        "average_precision": _average_precision(scores, anomalous),
        "tpr": _share(answers == 1, anomalous),
        "tnr": _share(answers == 0, ~anomalous),
    }


def _share(hits: np.ndarray, among: np.ndarray) -> _Statistic:
    # A resample has as many images of each class as there are, so the denominator never changes.
    counted, total = (hits & among).astype(float), max(1, int(among.sum()))
    return lambda counts: (counts @ counted) / total


def _macro_f1(labels: np.ndarray, answers: np.ndarray, classes: int) -> _Statistic:
    from scipy.sparse import csr_array

    images, right = np.arange(len(labels)), labels == answers
    # A row a class, a one for each image that was put into it: class x image takes no memory.
    answered = csr_array((np.ones(len(labels)), (answers, images)), shape=(classes, len(labels)))
    hits = csr_array((right.astype(float), (answers, images)), shape=(classes, len(labels)))
    support = np.bincount(labels, minlength=classes)[:, None]

    def statistic(counts: np.ndarray) -> np.ndarray:
        # F1 is 2 TP / (labelled + answered); 0 for a class of which there is neither.
        found = answered @ counts.T + support
        means: np.ndarray = (2 * (hits @ counts.T) / np.maximum(found, 1)).mean(axis=0)
        return means

    return statistic


def _auroc(scores: np.ndarray, anomalous: np.ndarray) -> _Statistic:
    """The share of pairs (anomalous, normal) in the right order, equal scores counting half."""
    normals, anomalies = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
    order = normals[np.argsort(scores[normals], kind="stable")]
    lower = np.searchsorted(scores[order], scores[anomalies], side="left")
    not_higher = np.searchsorted(scores[order], scores[anomalies], side="right")
    pairs = max(1, len(normals) * len(anomalies))

    def statistic(counts: np.ndarray) -> np.ndarray:
        below = _cumulated(counts[:, order])
        beaten = (below[:, lower] + below[:, not_higher]) / 2
        shares: np.ndarray = (counts[:, anomalies] * beaten).sum(axis=1) / pairs
        return shares

    return statistic


def _average_precision(scores: np.ndarray, anomalous: np.ndarray) -> _Statistic:
    """The mean over the anomalous images of the precision at their own score."""
    normals, anomalies = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
    falling = anomalies[np.argsort(-scores[anomalies], kind="stable")]
    normal_order = normals[np.argsort(-scores[normals], kind="stable")]
    target_size = np.searchsorted(-scores[falling], -scores[falling], side="right")
    false_alarms = np.searchsorted(-scores[normal_order], -scores[falling], side="right")

    def statistic(counts: np.ndarray) -> np.ndarray:
        found = _cumulated(counts[:, falling])[:, target_size]
        flagged = found + _cumulated(counts[:, normal_order])[:, false_alarms]
        precision = found / np.maximum(flagged, 1)
        means: np.ndarray = (counts[:, falling] * precision).sum(axis=1) / max(1, len(falling))
        return means

    return statistic


def _cumulated(counts: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, 2, ... columns."""
    sums = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums
