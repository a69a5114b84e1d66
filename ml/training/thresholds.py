"""The score from which an image is flagged: chosen on held-out images, never on test images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ml.config.schema import Threshold
from ml.errors import DataError
from ml.training.threshold_policies import above_quantile, select_policy

MIN_NORMAL = 20
CONFIDENCE = 0.95
RESAMPLES = 1000
_SEED = 0


@dataclass(frozen=True)
class Rate:
    """The share of some images that a threshold flags, with its confidence interval.

    The interval is the exact binomial one of 95 % (Clopper and Pearson, "The use of confidence or
    fiducial limits illustrated in the case of the binomial", 1934). It assumes that the images are
    independent of each other.

    Attributes:
        images: how many images there are.
        flagged: how many of them are flagged.
        value: their ratio.
        low: the lower end of the interval.
        high: the upper end of the interval.
    """

    images: int
    flagged: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold, how it was chosen, and how certain it is.

    Attributes:
        value: the threshold, a float32.
        policy: the policy that gave the value; not `asked` where that needs anomalies and there
            are none.
        asked: the policy of the configuration.
        low: the lower end of the threshold's bootstrap interval of 95 %.
        high: the upper end of the interval.
        tpr: the rate among the anomalous images that the threshold was chosen from; None if there
            are none.
        fpr: the rate among the normal images that it was chosen from.
        detail: the policy's own numbers.
    """

    value: float
    policy: str
    asked: str
    low: float
    high: float
    tpr: Rate | None
    fpr: Rate
    detail: dict[str, float] = field(default_factory=dict)


def choose_threshold(
    settings: Threshold,
    normal: np.ndarray,
    anomalous: np.ndarray,
    groups: np.ndarray | None = None,
) -> ChosenThreshold:
    """Choose a threshold from the scores of held-out images.

    Args:
        settings: the policy and its parameters.
        normal: the scores of the normal images, float (N,) in [0, 1].
        anomalous: the scores of the anomalous images, float (M,) in [0, 1]. It may be empty: then
            the policies `midpoint` and `cost` fall back to `target_fpr`.
        groups: int (N,), the same number for normal images of the same scene. Then the bootstrap
            resamples scenes instead of images, as frames of one scene are not independent.

    Raises:
        DataError: there are too few normal images to estimate a quantile, or the scores are all
            equal or not finite. A threshold that was guessed would look like any other.
    """
    scores = np.concatenate([normal, anomalous])
    _require_enough(normal)
    if not np.isfinite(scores).all() or np.ptp(scores) == 0:
        raise DataError("The scores of the held-out images are all equal or not finite.")
    policy = select_policy(settings, has_anomalies=len(anomalous) > 0)
    value = policy.threshold(normal, anomalous)
    low, high = _bootstrap(policy.threshold, normal, anomalous, groups)
    return ChosenThreshold(
        value,
        policy.name,
        settings.policy,
        low,
        high,
        _rate(anomalous >= value) if len(anomalous) else None,
        _rate(normal >= value),
        policy.detail(value, normal, anomalous),
    )


def quantile_threshold(values: np.ndarray, max_flagged: float) -> float:
    """The smallest float32 that at most a share of held-out normal values reaches.

    Args:
        values: float (N,), of normal images.
        max_flagged: that share.

    Raises:
        DataError: there are too few values to estimate a quantile.
    """
    _require_enough(values)
    return above_quantile(values, max_flagged)


def _require_enough(normal: np.ndarray) -> None:
    if len(normal) < MIN_NORMAL:
        raise DataError(
            f"{len(normal)} held-out normal images are too few to choose a threshold from.",
            f"At least {MIN_NORMAL} are needed: bring more, or raise holdout_share.",
        )


def _rate(flags: np.ndarray) -> Rate:
    from scipy.stats import binomtest

    images, flagged = len(flags), int(flags.sum())
    interval = binomtest(flagged, images).proportion_ci(CONFIDENCE, method="exact")
    return Rate(images, flagged, flagged / images, float(interval.low), float(interval.high))


def _bootstrap(
    threshold: Callable[[np.ndarray, np.ndarray], float],
    normal: np.ndarray,
    anomalous: np.ndarray,
    groups: np.ndarray | None,
) -> tuple[float, float]:
    """The percentile interval of a threshold.

    From Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13. Normal and
    anomalous images are resampled separately, so that their numbers stay.
    """
    random = np.random.default_rng(_SEED)
    scenes = _split_by_group(normal, groups)
    values = [
        threshold(_resample(random, normal, scenes), _resample(random, anomalous))
        for _ in range(RESAMPLES)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _split_by_group(scores: np.ndarray, groups: np.ndarray | None) -> Sequence[np.ndarray] | None:
    if groups is None:
        return None
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(scores[order], starts)


def _resample(
    random: np.random.Generator, scores: np.ndarray, scenes: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Resample with replacement: single scores, or whole scenes."""
    if scenes is None:
        return scores[random.integers(len(scores), size=len(scores))] if len(scores) else scores
    return np.concatenate([scenes[i] for i in random.integers(len(scenes), size=len(scenes))])
