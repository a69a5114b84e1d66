"""From which score on an image is flagged: chosen on held-out images, never on test images."""

from dataclasses import dataclass, field

import numpy as np

from ml.config import Threshold
from ml.errors import DataError

MIN_NORMAL = 20
_CLIP = 1e-6


@dataclass(frozen=True)
class ChosenThreshold:
    """The threshold, the policy that gave it, and the numbers it came from."""

    value: float
    policy: str
    detail: dict[str, float] = field(default_factory=dict)


def choose(policy: Threshold, normal: np.ndarray, anomalous: np.ndarray) -> ChosenThreshold:
    """Choose a threshold from the scores of held-out normal and anomalous images.

    Parameters
    ----------
    normal, anomalous: float arrays of scores in [0, 1]; `anomalous` may be empty, then `midpoint`
        falls back to `target_fpr`.

    Raises
    ------
    DataError: too few normal images to estimate a quantile, or scores that are all equal or not
        finite. Guessing would give a threshold that looks like any other.
    """
    everything = np.concatenate([normal, anomalous])
    if len(normal) < MIN_NORMAL:
        raise DataError(
            f"{len(normal)} held-out normal images are too few to choose a threshold from.",
            f"At least {MIN_NORMAL} are needed: bring more, or raise holdout_share.",
        )
    if not np.isfinite(everything).all() or np.ptp(everything) == 0:
        raise DataError("The scores of the held-out images are all equal or not finite.")
    counts = {"normal_images": float(len(normal)), "anomalous_images": float(len(anomalous))}
    if policy.policy == "midpoint" and len(anomalous):
        low = _logit(np.quantile(normal, policy.normal_quantile))
        high = _logit(np.quantile(anomalous, policy.anomalous_quantile))
        # Halfway between logits: halfway between probabilities near 0 and 1 would always be 1/2.
        value = _single(_sigmoid((low + high) / 2))
        numbers = {
            "normal_quantile_score": _sigmoid(low),
            "anomalous_quantile_score": _sigmoid(high),
        }
        return ChosenThreshold(value, "midpoint", counts | numbers)
    reached = np.float32(np.quantile(normal, 1 - policy.target_fpr))
    value = float(np.nextafter(reached, np.float32(np.inf)))
    return ChosenThreshold(value, "target_fpr", counts | {"target_fpr": policy.target_fpr})


def _single(value: float) -> float:
    """Rounded to what a float32 holds: scores are float32, and so is the threshold in SQL."""
    return float(np.float32(value))


def _logit(probability: float) -> float:
    clipped = min(max(float(probability), _CLIP), 1 - _CLIP)
    return float(np.log(clipped / (1 - clipped)))


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))
