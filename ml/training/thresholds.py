"""From which score on an image is flagged: chosen on held-out images, never on test images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ml.config.schema import Threshold
from ml.errors import DataError

MIN_NORMAL = 20
CONFIDENCE = 0.95
RESAMPLES = 1000
_SEED = 0
_CLIP = 1e-6
# A threshold that no score reaches: the smallest float32 above 1.
_ABOVE_ALL = float(np.nextafter(np.float32(1), np.float32(2)))

Value = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Rate:
    """The share of `images` that the threshold flags, with its exact binomial interval of 95 %
    (Clopper and Pearson, 1934), which takes images for independent of each other."""

    images: int
    flagged: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ChosenThreshold:
    """The threshold, how it was chosen, and how sure it is.

    `asked` is the policy of the configuration, `policy` the one that gave the value; they differ
    where there was no anomaly. `low` to `high` is the threshold's bootstrap interval of 95 %. `tpr`
    (None without anomalies) and `fpr` are the rates at `value`, on the images that it was chosen
    from. `detail` holds the policy's own numbers.
    """

    value: float
    policy: str
    asked: str
    low: float
    high: float
    tpr: Rate | None
    fpr: Rate
    detail: dict[str, float] = field(default_factory=dict)


def choose(
    policy: Threshold,
    normal: np.ndarray,
    anomalous: np.ndarray,
    groups: np.ndarray | None = None,
) -> ChosenThreshold:
    """Choose a threshold from the scores of held-out normal and anomalous images.

    Args:
        normal, anomalous: float arrays of scores in [0, 1]; `anomalous` may be empty, then
            `midpoint` and `cost` fall back to `target_fpr`.
        groups: int (len(normal),), the same number for normal images of one scene. The bootstrap
            draws scenes then instead of images: frames of a scene are not independent of each
            other.

    Raises:
        DataError: too few normal images to estimate a quantile, or scores that are all equal or not
            finite. Guessing would give a threshold that looks like any other.
    """
    everything = np.concatenate([normal, anomalous])
    _require_enough(normal)
    if not np.isfinite(everything).all() or np.ptp(everything) == 0:
        raise DataError("The scores of the held-out images are all equal or not finite.")
    used, value_of = _policy(policy, has_anomalies=len(anomalous) > 0)
    value = value_of(normal, anomalous)
    low, high = _bootstrap(value_of, normal, anomalous, groups)
    return ChosenThreshold(
        value,
        used,
        policy.policy,
        low,
        high,
        _rate(anomalous >= value) if len(anomalous) else None,
        _rate(normal >= value),
        _detail(policy, used, value, normal, anomalous),
    )


def above_share(values: np.ndarray, share: float) -> float:
    """The float32 from which on at most `share` of the values of held-out normal images lie.

    Raises:
        DataError: too few values to estimate a quantile.
    """
    _require_enough(values)
    return _above_share(values, share)


def expected_cost(
    policy: Threshold, value: float, normal: np.ndarray, anomalous: np.ndarray
) -> float:
    """The cost an image of a night, at the policy's share of anomalies, if rates are as here."""
    missed = float((anomalous < value).mean())
    false_alarms = float((normal >= value).mean())
    miss, false_alarm = _weights(policy)
    return miss * missed + false_alarm * false_alarms


def _require_enough(normal: np.ndarray) -> None:
    if len(normal) < MIN_NORMAL:
        raise DataError(
            f"{len(normal)} held-out normal images are too few to choose a threshold from.",
            f"At least {MIN_NORMAL} are needed: bring more, or raise holdout_share.",
        )


def _policy(policy: Threshold, *, has_anomalies: bool) -> tuple[str, Value]:
    """The policy that can be followed, and its function of normal and anomalous scores."""
    if policy.policy == "midpoint" and has_anomalies:
        return "midpoint", lambda normal, anomalous: _midpoint(policy, normal, anomalous)
    if policy.policy == "cost" and has_anomalies:
        return "cost", lambda normal, anomalous: _cheapest(policy, normal, anomalous)
    return "target_fpr", lambda normal, _: _above_share(normal, policy.target_fpr)


def _above_share(values: np.ndarray, share: float) -> float:
    reached = np.float32(np.quantile(values, 1 - share))
    return float(np.nextafter(reached, np.float32(np.inf)))


def _midpoint(policy: Threshold, normal: np.ndarray, anomalous: np.ndarray) -> float:
    low, high = (_logit(score) for score in _quantiles(policy, normal, anomalous))
    # Halfway between logits: halfway between probabilities near 0 and 1 would always be 1/2.
    return _single(_sigmoid((low + high) / 2))


def _quantiles(policy: Threshold, normal: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
    return (
        float(np.quantile(normal, policy.normal_quantile)),
        float(np.quantile(anomalous, policy.anomalous_quantile)),
    )


def _cheapest(policy: Threshold, normal: np.ndarray, anomalous: np.ndarray) -> float:
    """The middle, in logits, of the widest interval of thresholds that cost least."""
    edges = np.unique(np.concatenate([normal, anomalous]).astype(np.float64))
    # Any threshold above edges[i - 1] up to edges[i] flags the same images: a cost an interval.
    missed = np.searchsorted(np.sort(anomalous), edges, side="left") / len(anomalous)
    alarms = 1 - np.searchsorted(np.sort(normal), edges, side="left") / len(normal)
    miss, false_alarm = _weights(policy)
    cost = miss * np.append(missed, 1.0) + false_alarm * np.append(alarms, 0.0)
    cheapest = cost <= cost.min() + 1e-12 * cost.max()
    # Neighbours that cost the same are one interval: from where it begins to where it ends.
    turns = np.diff(np.concatenate([[False], cheapest, [False]]).astype(np.int8))
    limits = np.concatenate([[0.0], edges, [_ABOVE_ALL]])
    lows, highs = limits[:-1][turns[:-1] == 1], limits[1:][turns[1:] == -1]
    widths = [_logit(high) - _logit(low) for low, high in zip(lows, highs, strict=True)]
    low, high = lows[np.argmax(widths)], highs[np.argmax(widths)]
    middle = np.float32(_sigmoid((_logit(low) + _logit(high)) / 2))
    # Scores so near 0 or 1 that their clipped logits are equal have no middle but themselves.
    return float(min(max(middle, np.nextafter(np.float32(low), np.float32(2))), np.float32(high)))


def _weights(policy: Threshold) -> tuple[float, float]:
    """What a miss rate of 1 and a false-alarm rate of 1 cost an image."""
    share = policy.anomaly_share
    return share * policy.miss_cost, (1 - share) * policy.false_alarm_cost


def _detail(
    policy: Threshold, used: str, value: float, normal: np.ndarray, anomalous: np.ndarray
) -> dict[str, float]:
    if used == "midpoint":
        low, high = _quantiles(policy, normal, anomalous)
        return {"normal_quantile_score": low, "anomalous_quantile_score": high}
    if used == "cost":
        return {
            "miss_cost": policy.miss_cost,
            "false_alarm_cost": policy.false_alarm_cost,
            "anomaly_share": policy.anomaly_share,
            "expected_cost": expected_cost(policy, value, normal, anomalous),
        }
    return {"target_fpr": policy.target_fpr}


def _rate(flags: np.ndarray) -> Rate:
    from scipy.stats import binomtest

    images, flagged = len(flags), int(flags.sum())
    interval = binomtest(flagged, images).proportion_ci(CONFIDENCE, method="exact")
    return Rate(images, flagged, flagged / images, float(interval.low), float(interval.high))


def _bootstrap(
    value_of: Value, normal: np.ndarray, anomalous: np.ndarray, groups: np.ndarray | None
) -> tuple[float, float]:
    """The percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch.
    13) of a threshold; normal and anomalous images are drawn apart, each as many as there are."""
    random = np.random.default_rng(_SEED)
    scenes = _by_group(normal, groups)
    values = [
        value_of(_drawn(random, normal, scenes), _drawn(random, anomalous))
        for _ in range(RESAMPLES)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _by_group(scores: np.ndarray, groups: np.ndarray | None) -> Sequence[np.ndarray] | None:
    if groups is None:
        return None
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(scores[order], starts)


def _drawn(
    random: np.random.Generator, scores: np.ndarray, scenes: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """A resample, with replacement: of single scores, or of whole scenes."""
    if scenes is None:
        return scores[random.integers(len(scores), size=len(scores))] if len(scores) else scores
    return np.concatenate([scenes[i] for i in random.integers(len(scenes), size=len(scenes))])


def _single(value: float) -> float:
    """Rounded to what a float32 holds: scores are float32, and so is the threshold in SQL."""
    return float(np.float32(value))


def _logit(probability: float) -> float:
    clipped = min(max(float(probability), _CLIP), 1 - _CLIP)
    return float(np.log(clipped / (1 - clipped)))


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
