"""Whether a challenger may become champion: a pure decision over what was measured.

It must reach the floors, and must not be worse than the champion on the same held-out images by
more than `gate.max_drop`, which is a test of non-inferiority: the lower bound of the difference
(`ml.evaluation.comparison`) decides, not the difference itself, so that few images cannot hide a
loss.
"""

import math
from dataclasses import dataclass
from typing import Any

from ml.config.schema import GATE_METRICS, Gate
from ml.evaluation.comparison import Comparison, Difference


@dataclass(frozen=True)
class Check:
    """A number that must be at least `required`; None is no number, and does not pass."""

    name: str
    value: float | None
    required: float
    passed: bool


@dataclass(frozen=True)
class Decision:
    """What was decided, why, and from which numbers; None for what was not compared.

    `difference` is challenger - champion on the same `n` images, `lower` its lower bound at
    `confidence`, `p_value` that of the difference in accuracy, of classifiers only.
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
    """The champion on the same held-out images; `metrics` and `comparison` are None when it cannot
    be compared, and `note` says why.
    """

    version: int
    metrics: dict[str, Any] | None
    comparison: Comparison | None = None
    note: str = ""


@dataclass(frozen=True)
class _Finding:
    """What one rule says: a part of the reason, and the check it made, if it could."""

    text: str
    check: Check | None = None


def decide(
    gate: Gate, task: str, challenger: dict[str, Any], champion: Champion | None
) -> Decision:
    """Compare metrics on the same held-out images with the floors and with the champion's.

    A metric that cannot be measured, because no held-out image is anomalous, does not stop a
    model of task `anomaly`: its threshold then comes from normal images alone. Nor does a champion
    that cannot be compared, or there could never be another.

    Args:
        challenger: its metrics on the held-out images (`ml.evaluation.metrics`).
    """
    metric = gate.metric or GATE_METRICS[task][0]
    value = challenger.get(metric)
    compared = champion.comparison if champion else None
    difference = compared.differences.get(metric) if compared else None
    if value is None and task == "anomaly":
        findings = [_Finding(f"{metric} is not measurable without held-out anomalies; accepted")]
    elif value is None or not math.isfinite(value):
        findings = [_Finding(f"{metric} is {value}", _check(metric, value, gate.minimum))]
    else:
        findings = [
            _floor(gate, metric, value),
            *_recalls(gate, challenger.get("per_class", {})),
            _against(gate, metric, champion, difference),
        ]
    checks = [finding.check for finding in findings if finding.check]
    return Decision(
        passed=all(check.passed for check in checks),
        reason="; ".join(finding.text for finding in findings),
        metric=metric,
        challenger=_number(value),
        champion=_number(champion.metrics.get(metric)) if champion and champion.metrics else None,
        difference=_number(difference.difference) if difference else None,
        lower=_number(difference.lower) if difference else None,
        confidence=gate.confidence,
        p_value=compared.p_value if compared else None,
        n=challenger.get("n", 0),
        checks=checks,
    )


def _floor(gate: Gate, metric: str, value: float) -> _Finding:
    check = _check(metric, value, gate.minimum)
    below = "" if check.passed else ": below the floor"
    return _Finding(f"{metric} {value:.4f}, floor {gate.minimum:.4f}{below}", check)


def _recalls(gate: Gate, per_class: dict[str, dict[str, float]]) -> list[_Finding]:
    """That no class is given up for the others' sake; the worst one is named."""
    measured = {name: found["recall"] for name, found in per_class.items() if found["support"]}
    if not measured:
        return []
    worst = min(measured, key=lambda name: measured[name])
    check = _check(f"recall of {worst}, the lowest", measured[worst], gate.minimum_recall)
    below = "" if check.passed else ": below the floor"
    text = f"lowest recall {measured[worst]:.4f} of class {worst}"
    findings = [_Finding(f"{text}, floor {gate.minimum_recall:.4f}{below}", check)]
    missing = sorted(per_class.keys() - measured.keys())
    if missing and gate.minimum_recall:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        findings.append(_Finding(f"no held-out image shows the recall of class {names}"))
    return findings


def _against(
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
    value = _number(value)
    return Check(name, value, required, value is not None and value >= required)


def _number(value: float | None) -> float | None:
    """None for what JSON and Postgres have no number for."""
    return value if value is not None and math.isfinite(value) else None
