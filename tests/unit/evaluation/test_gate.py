"""The gate: what passes, what does not, and the reasons."""

from dataclasses import replace

import pytest

from ml.config.schema import Gate
from ml.evaluation.comparison import Comparison, Difference
from ml.evaluation.gate import Champion, decide

GATE = Gate(metric="accuracy", minimum=0.8, max_drop=0.01)


def _champion(value: float, champion: float, lower: float, upper: float = 0.1) -> Champion:
    difference = Difference(value, champion, value - champion, lower, upper)
    comparison = Comparison(1000, 0.95, 2000, 12, 0.25, {"accuracy": difference})
    return Champion(3, {"accuracy": champion}, comparison)


def _decide(value, champion=None, gate=GATE, **metrics):
    return decide(gate, "classification", {"n": 1000, "accuracy": value} | metrics, champion)


def test_the_first_version_needs_the_floor_only():
    assert _decide(0.8).passed
    below = _decide(0.79)
    assert not below.passed
    assert "0.7900" in below.reason and "below the floor" in below.reason


def test_the_lower_bound_decides_and_not_the_difference():
    certain = _decide(0.895, _champion(0.895, 0.9, lower=-0.0099))
    assert certain.passed
    assert "version 3 has 0.9000" in certain.reason
    uncertain = _decide(0.91, _champion(0.91, 0.9, lower=-0.02))
    assert not uncertain.passed
    assert "may be worse by more than 0.01" in uncertain.reason
    assert "at least -0.0200 with 95 % confidence" in uncertain.reason


def test_equal_outputs_pass_without_any_margin():
    equal = _champion(0.9, 0.9, lower=0.0, upper=0.0)
    assert _decide(0.9, equal, gate=Gate(metric="accuracy", max_drop=0)).passed


def test_a_decision_has_its_numbers_and_its_checks():
    decision = _decide(0.895, _champion(0.895, 0.9, lower=-0.02))
    assert (decision.metric, decision.challenger, decision.champion) == ("accuracy", 0.895, 0.9)
    assert decision.difference == pytest.approx(-0.005)
    assert (decision.lower, decision.confidence, decision.p_value) == (-0.02, 0.95, 0.25)
    assert decision.n == 1000
    assert [(check.value, check.required, check.passed) for check in decision.checks] == [
        (0.895, 0.8, True),
        (-0.02, -0.01, False),
    ]


def test_a_class_below_the_floor_of_recall_fails_and_is_named():
    gate = Gate(metric="accuracy", minimum_recall=0.5)
    per_class = {
        "cat": {"recall": 0.9, "support": 90},
        "dog": {"recall": 0.4, "support": 10},
        "emu": {"recall": 0.0, "support": 0},
    }
    decision = _decide(0.85, gate=gate, per_class=per_class)
    assert not decision.passed
    assert "lowest recall 0.4000 of class dog, floor 0.5000: below the floor" in decision.reason
    # The recall of class emu is not known; the reason says so, and the gate may still pass.
    assert "no held-out image shows the recall of class emu" in decision.reason
    unseen = {name: {"recall": 0.0, "support": 0} for name in "vwxyz"}
    five = _decide(0.85, gate=gate, per_class={"cat": per_class["cat"]} | unseen)
    assert "of class v, w, x, y, z;" in five.reason
    six = _decide(0.85, gate=gate, per_class=per_class | unseen)
    assert "of class emu, v, w, x, y, ...;" in six.reason
    better = per_class | {"dog": {"recall": 0.5, "support": 10}}
    assert _decide(0.85, gate=gate, per_class=better).passed


def test_a_champion_that_cannot_be_compared_is_named_and_does_not_fail_the_challenger():
    decision = _decide(0.85, Champion(3, None, None, "it has other classes"))
    assert decision.passed
    assert "not comparable with version 3: it has other classes" in decision.reason


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_metric_that_is_not_a_number_fails(value):
    decision = _decide(value, _champion(0.9, 0.9, lower=0.0))
    assert not decision.passed
    assert decision.challenger is None


def test_a_bound_that_is_not_a_number_fails():
    decision = _decide(0.9, _champion(0.9, 0.9, lower=float("nan")))
    assert not decision.passed
    assert decision.lower is None


def test_without_held_out_anomalies_an_anomaly_model_is_accepted_with_a_note():
    decision = decide(Gate(), "anomaly", {"n": 5, "auroc": None}, None)
    assert decision.passed
    assert "not measurable" in decision.reason


def test_an_anomaly_model_has_no_recalls_and_no_p_value():
    difference = Difference(0.95, 0.94, 0.01, -0.005, 0.02)
    comparison = Comparison(100, 0.95, 2000, 3, None, {"auroc": difference})
    champion = Champion(1, {"auroc": 0.94}, comparison)
    decision = decide(Gate(), "anomaly", {"n": 100, "auroc": 0.95}, champion)
    assert decision.passed
    assert decision.p_value is None
    assert len(decision.checks) == 2
    champion = replace(champion, comparison=replace(comparison, differences={}))
    decision = decide(Gate(), "anomaly", {"n": 100, "auroc": 0.95}, champion)
    assert decision.passed
    assert "its auroc is not measurable" in decision.reason
