"""The text of a version's page in MLflow: where it comes from, how it did, what the gate said."""

import re
from collections.abc import Sequence
from typing import Any

from ml.config.schema import Model
from ml.evaluation.gate import Champion, Decision

# MLflow keeps 5,000 characters of a description; the run has the table of all classes.
_MOST_CLASSES = 20


def describe(
    settings: Model,
    holdout: dict[str, Any],
    test: dict[str, Any] | None,
    champion: Champion | None,
    decision: Decision,
    threshold: dict[str, Any] | None,
    *,
    snapshot_uri: str,
    synthetic: bool,
) -> str:
    """The description of a version, in Markdown.

    Args:
        holdout, test: metrics on the held-out images and on the split test
            (`ml.evaluation.metrics`).
        threshold: as stored with the program (`ml.training.thresholds.ChosenThreshold`), if it has
            one.
    """
    banner = "**SYNTHETIC SAMPLE DATA: drawn by Nightscore, says nothing of a real line.**"
    verdict = "passed" if decision.passed else "NOT passed, not promoted"
    parts = [
        banner if synthetic else "",
        f"**Gate {verdict}:** {_escaped(decision.reason)}",
        _checks(decision),
        f"{settings.task}, architecture {settings.architecture}, snapshot `{snapshot_uri}`",
        _metrics(holdout, test or {}),
        _threshold(threshold) if threshold else "",
        _comparison(champion) if champion else "",
        _classes(holdout.get("per_class", {})),
    ]
    return "\n\n".join(part for part in parts if part)


def _checks(decision: Decision) -> str:
    rows = [
        (
            _escaped(check.name),
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
    """How the threshold was chosen and how sure it and the rates at it are."""
    policy, asked, tpr, fpr = (threshold[key] for key in ("policy", "asked", "tpr", "fpr"))
    fallen_back = f" ({asked} needs calibration anomalies)" if policy != asked else ""
    value, low, high = (f"{threshold[key]:.6f}" for key in ("value", "low", "high"))
    rows = [
        ("policy", f"{policy}{fallen_back}", "", ""),
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
    """Both versions side by side; a difference has one-sided bounds at the gate's confidence."""
    found = champion.comparison
    if found is None:
        return ""
    rows = [
        (
            name,
            _number(one.challenger),
            _number(one.champion),
            f"{one.difference:+.4f} ({one.lower:+.4f} to {one.upper:+.4f})",
        )
        for name, one in found.differences.items()
    ]
    header = "metric", "this version", f"version {champion.version}", "difference (bounds)"
    notes = [f"They judge {found.disagreements:,} of {found.n:,} held-out images differently."]
    if found.p_value is not None:
        notes.append(f"Equal accuracy: p = {found.p_value:.3g} (McNemar's exact test).")
    notes.append(
        f"Each bound holds with {100 * found.confidence:g} % confidence "
        f"({found.resamples:,} resamples)."
    )
    return _table(header, rows) + "\n\n" + " ".join(notes)


def _classes(per_class: dict[str, dict[str, float]]) -> str:
    if not 0 < len(per_class) <= _MOST_CLASSES:
        return ""
    measures = ("precision", "recall", "f1", "support")
    rows = [
        (_escaped(name), *(_number(row[key]) for key in measures))
        for name, row in per_class.items()
    ]
    return _table(("class, held-out images", *measures), rows)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: a class is called as somebody has called a folder."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!&])", r"\\\1", " ".join(text.split()))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
