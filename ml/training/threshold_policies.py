"""The policies by which a threshold follows from the scores of held-out images.

Scores are float arrays in [0, 1]; those of normal images (N,) and of anomalous ones (M,). A
threshold is a float32, as scores are, and flags the scores that are greater or equal.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ml.config.schema import Threshold

# Probabilities are clipped to [_CLIP, 1 - _CLIP] before their logit is taken.
_CLIP = 1e-6
# A threshold that no score reaches: the smallest float32 above 1.
_ABOVE_ALL = float(np.nextafter(np.float32(1), np.float32(2)))


class Policy(Protocol):
    """How a threshold is chosen."""

    @property
    def name(self) -> str:
        """The policy's name in `nightscore.yaml`."""

    def threshold(self, normal: np.ndarray, anomalous: np.ndarray) -> float:
        """The threshold for these scores."""

    def detail(
        self, threshold: float, normal: np.ndarray, anomalous: np.ndarray
    ) -> dict[str, float]:
        """The numbers that led to the threshold, to be stored with it."""


@dataclass(frozen=True)
class TargetFpr:
    """At most this share of the normal images is flagged; needs no anomalies."""

    target_fpr: float
    name: str = "target_fpr"

    def threshold(self, normal: np.ndarray, anomalous: np.ndarray) -> float:
        """See `Policy.threshold`."""
        return above_quantile(normal, self.target_fpr)

    def detail(
        self, threshold: float, normal: np.ndarray, anomalous: np.ndarray
    ) -> dict[str, float]:
        """See `Policy.detail`."""
        return {"target_fpr": self.target_fpr}


@dataclass(frozen=True)
class Midpoint:
    """Halfway between a high quantile of the normal and a low one of the anomalous scores."""

    normal_quantile: float
    anomalous_quantile: float
    name: str = "midpoint"

    def threshold(self, normal: np.ndarray, anomalous: np.ndarray) -> float:
        """See `Policy.threshold`."""
        low, high = (_logit(score) for score in self._quantiles(normal, anomalous))
        # The mean of logits: that of probabilities near 0 and 1 would always be 1/2.
        return float(np.float32(_sigmoid((low + high) / 2)))

    def detail(
        self, threshold: float, normal: np.ndarray, anomalous: np.ndarray
    ) -> dict[str, float]:
        """See `Policy.detail`."""
        low, high = self._quantiles(normal, anomalous)
        return {"normal_quantile_score": low, "anomalous_quantile_score": high}

    def _quantiles(self, normal: np.ndarray, anomalous: np.ndarray) -> tuple[float, float]:
        return (
            float(np.quantile(normal, self.normal_quantile)),
            float(np.quantile(anomalous, self.anomalous_quantile)),
        )


@dataclass(frozen=True)
class MinimumCost:
    """Where misses and false alarms are expected to cost least."""

    miss_cost: float
    false_alarm_cost: float
    anomaly_share: float
    name: str = "cost"

    def threshold(self, normal: np.ndarray, anomalous: np.ndarray) -> float:
        """See `Policy.threshold`: the middle, in logits, of the widest interval of least cost."""
        lows, highs = self._cheapest_intervals(normal, anomalous)
        widths = [_logit(high) - _logit(low) for low, high in zip(lows, highs, strict=True)]
        low, high = lows[np.argmax(widths)], highs[np.argmax(widths)]
        middle = np.float32(_sigmoid((_logit(low) + _logit(high)) / 2))
        # Near 0 and 1 the clipped logits of both ends may be equal: stay inside the interval.
        smallest = np.nextafter(np.float32(low), np.float32(2))
        return float(min(max(middle, smallest), np.float32(high)))

    def detail(
        self, threshold: float, normal: np.ndarray, anomalous: np.ndarray
    ) -> dict[str, float]:
        """See `Policy.detail`."""
        return {
            "miss_cost": self.miss_cost,
            "false_alarm_cost": self.false_alarm_cost,
            "anomaly_share": self.anomaly_share,
            "expected_cost": self.expected_cost(threshold, normal, anomalous),
        }

    def expected_cost(self, threshold: float, normal: np.ndarray, anomalous: np.ndarray) -> float:
        """The expected cost per image, if a night's rates are those of the held-out images."""
        miss_rate = float((anomalous < threshold).mean())
        false_alarm_rate = float((normal >= threshold).mean())
        return self._miss_weight * miss_rate + self._false_alarm_weight * false_alarm_rate

    @property
    def _miss_weight(self) -> float:
        return self.anomaly_share * self.miss_cost

    @property
    def _false_alarm_weight(self) -> float:
        return (1 - self.anomaly_share) * self.false_alarm_cost

    def _cheapest_intervals(
        self, normal: np.ndarray, anomalous: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The intervals of thresholds that cost least: lower ends (excluded), upper ends."""
        edges = np.unique(np.concatenate([normal, anomalous]).astype(np.float64))
        # All thresholds above edges[i - 1] up to edges[i] flag the same images: they cost the same.
        missed = np.searchsorted(np.sort(anomalous), edges, side="left") / len(anomalous)
        alarms = 1 - np.searchsorted(np.sort(normal), edges, side="left") / len(normal)
        cost = self._miss_weight * np.append(missed, 1.0)
        cost = cost + self._false_alarm_weight * np.append(alarms, 0.0)
        is_cheapest = cost <= cost.min() + 1e-12 * cost.max()
        # Neighbours that cost the same are one interval, from its first to its last edge.
        steps = np.diff(np.concatenate([[False], is_cheapest, [False]]).astype(np.int8))
        limits = np.concatenate([[0.0], edges, [_ABOVE_ALL]])
        return limits[:-1][steps[:-1] == 1], limits[1:][steps[1:] == -1]


def select_policy(settings: Threshold, *, has_anomalies: bool) -> Policy:
    """The policy of the configuration; `target_fpr` if that one needs anomalies and has none."""
    if settings.policy == "midpoint" and has_anomalies:
        return Midpoint(settings.normal_quantile, settings.anomalous_quantile)
    if settings.policy == "cost" and has_anomalies:
        return MinimumCost(settings.miss_cost, settings.false_alarm_cost, settings.anomaly_share)
    return TargetFpr(settings.target_fpr)


def above_quantile(values: np.ndarray, max_flagged: float) -> float:
    """The smallest float32 above the quantile 1 - `max_flagged`: at most this share is flagged."""
    quantile = np.float32(np.quantile(values, 1 - max_flagged))
    return float(np.nextafter(quantile, np.float32(np.inf)))


def _logit(probability: float) -> float:
    clipped = min(max(float(probability), _CLIP), 1 - _CLIP)
    return float(np.log(clipped / (1 - clipped)))


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
