"""The gate decides whether a challenger may become champion, from their metrics alone.

The challenger must reach the floors. And it must not be worse than the champion on the same
held-out images by more than `gate.max_drop`. This is a test of non-inferiority: what counts is the
lower bound of the difference (`ml.evaluation.comparison`), not the difference itself, so that a
loss cannot hide behind a small number of images.
"""

import math
from dataclasses import dataclass
from typing import Any

from ml.config.schema import GATE_METRICS, Gate
from ml.evaluation.comparison import Comparison, Difference


@dataclass(frozen=True)
class Check:
    """A number that must reach a minimum.

    Attributes:
        name: of the number.
        value: None if it is not a number; then the check does not pass.
        required: the minimum.
        passed: whether `value` reaches it.
    """

    name: str
    value: float | None
    required: float
    passed: bool


@dataclass(frozen=True)
class Decision:
    """A decision, its reason and its numbers; a number that was not compared is None.

    Attributes:
        passed: whether the challenger may become champion.
        reason: a sentence for people.
        metric: the metric that was compared.
        challenger: the challenger's value of it.
        champion: the champion's value of it.
        difference: challenger - champion.
        lower: the lower bound of the difference.
        confidence: of the lower bound.
        p_value: of the difference in accuracy, for classifiers only.
        n: the number of images.
        checks: one for each rule.
    """

    passed: bool
    reason: str
    metric: str
    challenger: float | None
    champion: float | None
    difference: float | None
    lower: float | None
    confidence: float
    p_value: float | None
    n: int
    checks: list[Check]


@dataclass(frozen=True)
class Champion:
    """The champion on the same held-out images as the challenger.

    Attributes:
        version: its version.
        metrics: its metrics; None if it cannot be compared.
        comparison: with the challenger; None if it cannot be compared.
        note: why it cannot be compared.
    """

    version: int
    metrics: dict[str, Any] | None
    comparison: Comparison | None = None
    note: str = ""


@dataclass(frozen=True)
class _Finding:
    """The result of one rule: a part of the reason, and its check, unless it could not check."""

    text: str
    check: Check | None = None


def decide(
    gate: Gate, task: str, challenger: dict[str, Any], champion: Champion | None
) -> Decision:
    """Compare the challenger's metrics with the floors and with the champion's.

    Two things do not stop a challenger: a metric of an anomaly model that cannot be measured, as no
    held-out image is anomalous (the threshold then comes from normal images alone); and a champion
    that cannot be compared, as otherwise it could never be replaced.

    Args:
        gate: the rules.
        task: of the model.
        challenger: its metrics on the held-out images (`ml.evaluation.metrics`).
        champion: None if there is none yet.
    """
    metric = gate.metric or GATE_METRICS[task][0]
    value = challenger.get(metric)
    comparison = champion.comparison if champion else None
    difference = comparison.differences.get(metric) if comparison else None
    if value is None and task == "anomaly":
        findings = [_Finding(f"{metric} is not measurable without held-out anomalies; accepted")]
    elif value is None or not math.isfinite(value):
        findings = [_Finding(f"{metric} is {value}", _check(metric, value, gate.minimum))]
    else:
        findings = [
            _apply_floor(gate, metric, value),
            *_apply_recall_floor(gate, challenger.get("per_class", {})),
            _compare_with_champion(gate, metric, champion, difference),
        ]
    checks = [finding.check for finding in findings if finding.check]
    return Decision(
        passed=all(check.passed for check in checks),
        reason="; ".join(finding.text for finding in findings),
        metric=metric,
        challenger=_finite(value),
        champion=_finite(champion.metrics.get(metric)) if champion and champion.metrics else None,
        difference=_finite(difference.difference) if difference else None,
        lower=_finite(difference.lower) if difference else None,
        confidence=gate.confidence,
        p_value=comparison.p_value if comparison else None,
        n=challenger.get("n", 0),
        checks=checks,
    )


def _apply_floor(gate: Gate, metric: str, value: float) -> _Finding:
    check = _check(metric, value, gate.minimum)
    suffix = "" if check.passed else ": below the floor"
    return _Finding(f"{metric} {value:.4f}, floor {gate.minimum:.4f}{suffix}", check)


def _apply_recall_floor(gate: Gate, per_class: dict[str, dict[str, float]]) -> list[_Finding]:
    """The floor of every class's recall, so that none is sacrificed for the mean."""
    recalls = {name: row["recall"] for name, row in per_class.items() if row["support"]}
    if not recalls:
        return []
    worst = min(recalls, key=lambda name: recalls[name])
    check = _check(f"recall of {worst}, the lowest", recalls[worst], gate.minimum_recall)
    suffix = "" if check.passed else ": below the floor"
    text = f"lowest recall {recalls[worst]:.4f} of class {worst}"
    findings = [_Finding(f"{text}, floor {gate.minimum_recall:.4f}{suffix}", check)]
    missing = sorted(per_class.keys() - recalls.keys())
    if missing and gate.minimum_recall:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        findings.append(_Finding(f"no held-out image shows the recall of class {names}"))
    return findings


def _compare_with_champion(
    gate: Gate, metric: str, champion: Champion | None, difference: Difference | None
) -> _Finding:
    if champion is None:
        return _Finding("there is no champion yet")
    if difference is None:
        note = champion.note or f"its {metric} is not measurable"
        return _Finding(f"not comparable with version {champion.version}: {note}")
    lower = difference.lower
    name = f"{metric} less that of version {champion.version}, lower bound"
    check = _check(name, lower, -gate.max_drop)
    verdict = "not worse" if check.passed else "may be worse"
    return _Finding(
        f"version {champion.version} has {difference.champion:.4f} on the same images, a "
        f"difference of {difference.difference:+.4f}, at least {lower:+.4f} with "
        f"{100 * gate.confidence:g} % confidence: {verdict} by more than {gate.max_drop:g}",
        check,
    )


def _check(name: str, value: float | None, required: float) -> Check:
    value = _finite(value)
    return Check(name, value, required, value is not None and value >= required)


def _finite(value: float | None) -> float | None:
    """A number, or None for NaN and infinity, which JSON in Postgres cannot store."""
    return value if value is not None and math.isfinite(value) else None
