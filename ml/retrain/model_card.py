"""The model card of a version, its page in MLflow: origin, metrics, decision of the gate."""

import re
from collections.abc import Sequence
from typing import Any

from ml.config.schema import Model
from ml.evaluation.gate import Champion, Decision
from ml.retrain.values import Assessment

# MLflow keeps 5,000 characters of a description; the run has the table of all classes.
_MAX_CLASSES = 20


def render(
    settings: Model,
    assessment: Assessment,
    decision: Decision,
    threshold: dict[str, Any] | None,
    *,
    snapshot_uri: str,
    synthetic: bool,
) -> str:
    """Render a model card in Markdown.

    Args:
        settings: the configuration that the version was trained with.
        assessment: its metrics, and the comparison with the champion.
        decision: of the gate.
        threshold: a `ml.training.thresholds.ChosenThreshold` as JSON; None if it has none.
        snapshot_uri: of the snapshot that it was trained on.
        synthetic: whether the snapshot has built-in samples.
    """
    banner = "**SYNTHETIC SAMPLE DATA: drawn by Nightscore, says nothing of a real line.**"
    verdict = "passed" if decision.passed else "NOT passed, not promoted"
    parts = [
        banner if synthetic else "",
        f"**Gate {verdict}:** {_escape(decision.reason)}",
        _checks(decision),
        f"{settings.task}, architecture {settings.architecture}, snapshot `{snapshot_uri}`",
        _metrics(assessment.holdout, assessment.test or {}),
        _threshold(threshold) if threshold else "",
        _comparison(assessment.champion) if assessment.champion else "",
        _classes(assessment.holdout.get("per_class", {})),
    ]
    return "\n\n".join(part for part in parts if part)


def _checks(decision: Decision) -> str:
    rows = [
        (
            _escape(check.name),
            _number(check.value),
            _number(check.required),
            "yes" if check.passed else "NO",
        )
        for check in decision.checks
    ]
    return _table(("check", "value", "at least", "passed"), rows) if rows else ""


def _metrics(holdout: dict[str, Any], test: dict[str, Any]) -> str:
    rows = [
        (key, _number(value), _number(test.get(key)))
        for key, value in holdout.items()
        if isinstance(value, int | float)
    ]
    return _table(("metric", "held-out images", "test split (reported only)"), rows)


def _threshold(threshold: dict[str, Any]) -> str:
    """A table of how the threshold was chosen, and how certain it and the rates at it are."""
    policy, asked, tpr, fpr = (threshold[key] for key in ("policy", "asked", "tpr", "fpr"))
    fallback = f" ({asked} needs calibration anomalies)" if policy != asked else ""
    value, low, high = (f"{threshold[key]:.6f}" for key in ("value", "low", "high"))
    rows = [
        ("policy", f"{policy}{fallback}", "", ""),
        ("threshold", value, f"{low} to {high}", ""),
    ]
    if tpr:
        rate = _rate(tpr["value"], tpr["low"], tpr["high"])
        rows.append(("TPR", *rate, f"{tpr['images']:,} anomalous"))
    rate = _rate(1 - fpr["value"], 1 - fpr["high"], 1 - fpr["low"])
    rows.append(("TNR", *rate, f"{fpr['images']:,} normal"))
    return _table(("expected at the threshold", "", "95 % interval", "held-out images"), rows)


def _rate(value: float, low: float, high: float) -> tuple[str, str]:
    return _number(value), f"{_number(low)} to {_number(high)}"


def _comparison(champion: Champion) -> str:
    """A table of both versions; a difference has one-sided bounds at the gate's confidence."""
    comparison = champion.comparison
    if comparison is None:
        return ""
    rows = [
        (
            name,
            _number(metric.challenger),
            _number(metric.champion),
            f"{metric.difference:+.4f} ({metric.lower:+.4f} to {metric.upper:+.4f})",
        )
        for name, metric in comparison.differences.items()
    ]
    header = "metric", "this version", f"version {champion.version}", "difference (bounds)"
    notes = [
        f"They judge {comparison.disagreements:,} of {comparison.n:,} held-out images differently."
    ]
    if comparison.p_value is not None:
        notes.append(f"Equal accuracy: p = {comparison.p_value:.3g} (McNemar's exact test).")
    notes.append(
        f"Each bound holds with {100 * comparison.confidence:g} % confidence "
        f"({comparison.resamples:,} resamples)."
    )
    return _table(header, rows) + "\n\n" + " ".join(notes)


def _classes(per_class: dict[str, dict[str, float]]) -> str:
    if not 0 < len(per_class) <= _MAX_CLASSES:
        return ""
    columns = ("precision", "recall", "f1", "support")
    rows = [
        (_escape(name), *(_number(row[key]) for key in columns)) for name, row in per_class.items()
    ]
    return _table(("class, held-out images", *columns), rows)


def _escape(text: str) -> str:
    """Escape what Markdown would interpret, as the name of a class is any folder's name."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!&])", r"\\\1", " ".join(text.split()))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
