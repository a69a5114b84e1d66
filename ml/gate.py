"""Whether a challenger may become champion: a pure decision over two sets of metrics."""

import math
from dataclasses import dataclass
from typing import Any

from ml.config import GATE_METRICS, Gate


@dataclass(frozen=True)
class Decision:
    """What was decided, why, and from which numbers."""

    passed: bool
    reason: str
    metric: str
    challenger: float | None
    champion: float | None


@dataclass(frozen=True)
class Champion:
    """The champion on the same held-out images; `metrics` is None when it cannot be compared,
    and `note` says why."""

    version: int
    metrics: dict[str, Any] | None
    note: str = ""


def decide(
    gate: Gate, task: str, challenger: dict[str, Any], champion: Champion | None
) -> Decision:
    """Compare metrics on the same held-out images with the floor and with the champion's.

    A metric that cannot be measured, because no held-out image is anomalous, does not stop a
    model of task `anomaly`: its threshold then comes from normal images alone.
    """
    metric = gate.metric or GATE_METRICS[task][0]
    value = challenger.get(metric)
    other = champion.metrics.get(metric) if champion and champion.metrics else None

    def decided(passed: bool, reason: str) -> Decision:
        return Decision(passed, reason, metric, value, other)

    if value is None and task == "anomaly":
        return decided(True, f"{metric} is not measurable without held-out anomalies; accepted")
    if value is None or not math.isfinite(value):
        return decided(False, f"{metric} is {value}")
    floor = f"{metric} {value:.4f}, floor {gate.minimum:.4f}"
    if value < gate.minimum:
        return decided(False, f"{floor}: below the floor")
    if champion is None:
        return decided(True, f"{floor}; there is no champion yet")
    if other is None:
        note = champion.note or f"its {metric} is not measurable"
        return decided(True, f"{floor}; not comparable with version {champion.version}: {note}")
    compared = f"{floor}; version {champion.version} has {other:.4f} on the same images"
    if value < other - gate.max_drop:
        return decided(False, f"{compared}: worse by more than {gate.max_drop:g}")
    return decided(True, f"{compared}: not worse by more than {gate.max_drop:g}")
