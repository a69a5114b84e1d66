"""Metrics and thresholds: figures checked by hand."""

import numpy as np
import pytest

from ml.config.schema import Threshold
from ml.errors import DataError
from ml.evaluation.metrics import (
    anomaly_metrics,
    calibration,
    classification_metrics,
    score_reference,
)
from ml.training.thresholds import choose


def test_classification_metrics_of_a_small_example():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    found = classification_metrics(probabilities, np.array([0, 0, 1, 1]), ("cat", "dog"))
    assert found["n"] == 4
    assert found["accuracy"] == 0.75
    # cat: precision 2/3, recall 1; dog: precision 1, recall 1/2.
    assert found["per_class"]["cat"]["f1"] == pytest.approx(0.8)
    assert found["per_class"]["dog"]["f1"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["per_class"]["dog"]["support"] == 2


def test_anomaly_metrics_of_a_small_example():
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    found = anomaly_metrics(scores, np.array([False, False, True, True]), 0.4)
    # Of the four pairs, one is in the wrong order; the example of scikit-learn's documentation.
    assert found["auroc"] == 0.75
    assert found["average_precision"] == pytest.approx(0.8333, abs=1e-4)
    assert (found["tpr"], found["tnr"]) == (0.5, 0.5)


def test_what_needs_both_kinds_is_none_without_them():
    found = anomaly_metrics(np.array([0.1, 0.2]), np.array([False, False]), 0.15)
    assert found["auroc"] is None
    assert found["tpr"] is None
    assert found["tnr"] == 0.5
    found = anomaly_metrics(np.array([0.1, 0.2]), np.array([True, True]), 0.15)
    assert found["auroc"] is None and found["average_precision"] is None
    assert found["tpr"] == 0.5
    assert found["tnr"] is None


def test_an_output_that_is_no_number_makes_the_metrics_none_either():
    broken = np.array([[0.9, 0.1], [np.nan, np.nan]])
    found = classification_metrics(broken, np.array([0, 0]), ("cat", "dog"))
    assert np.isnan(found["accuracy"]) and np.isnan(found["macro_f1"])
    found = anomaly_metrics(np.array([0.1, np.nan]), np.array([False, True]), 0.5)
    assert np.isnan(found["auroc"]) and np.isnan(found["average_precision"])


def test_calibration_of_a_small_example():
    # Two of the three that are said to be right with 0.9 are, the one said with 0.55 is not.
    found = calibration(np.array([0.9, 0.9, 0.9, 0.55]), np.array([True, True, False, False]))
    assert found.error == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.55)
    assert len(found.counts) == 15
    assert found.counts.sum() == 4
    assert found.rates[13] == pytest.approx(2 / 3)
    assert np.isnan(found.rates[0])


def test_calibration_counts_what_lies_on_an_edge_in_the_bin_below():
    found = calibration(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    assert found.counts.tolist() == [2, 1]


def test_calibration_agrees_with_scikit_learn():
    from sklearn.calibration import calibration_curve

    random = np.random.default_rng(0)
    probabilities = random.random(500)
    outcomes = random.random(500) < probabilities**2
    rates, means = calibration_curve(outcomes, probabilities, n_bins=15, strategy="uniform")
    found = calibration(probabilities, outcomes)
    np.testing.assert_allclose(found.rates, rates)
    np.testing.assert_allclose(found.confidences, means)


def test_a_reference_has_bins_of_equal_shares_and_an_edge_belongs_to_the_bin_above():
    found = score_reference(np.array([0, 1, 2, 3, 4]), bins=4)
    assert found == {"edges": [1, 2, 3], "shares": [0.2, 0.2, 0.2, 0.4]}
    found = score_reference(np.linspace(0, 1, 101))
    assert found["edges"] == pytest.approx(np.arange(1, 10) / 10)


def test_a_reference_counts_every_value_once():
    values = np.concatenate([np.zeros(50), np.linspace(0, 1, 50)])
    found = score_reference(values)
    assert sum(found["shares"]) == pytest.approx(1)
    assert len(found["shares"]) == len(found["edges"]) + 1
    assert found["edges"] == sorted(set(found["edges"]))


class TestThreshold:
    def test_midpoint_lies_between_the_two_kinds(self):
        random = np.random.default_rng(0)
        normal, anomalous = random.uniform(0, 0.2, 500), random.uniform(0.8, 1, 50)
        chosen = choose(Threshold(), normal, anomalous)
        assert chosen.policy == "midpoint"
        assert 0.2 < chosen.value < 0.8

    def test_without_anomalies_the_false_alarm_rate_decides(self):
        normal = np.arange(1000) / 1000
        chosen = choose(Threshold(target_fpr=0.05), normal, np.empty(0))
        assert chosen.policy == "target_fpr"
        assert (normal >= chosen.value).mean() == pytest.approx(0.05, abs=0.002)

    @pytest.mark.parametrize("policy", ["midpoint", "target_fpr"])
    def test_a_threshold_is_a_float32_as_scores_are(self, policy):
        normal = np.random.default_rng(1).uniform(0, 0.5, 100).astype(np.float32)
        chosen = choose(Threshold(policy=policy), normal, np.array([0.9, 0.95], np.float32))
        assert float(np.float32(chosen.value)) == chosen.value

    def test_too_few_or_equal_scores_are_refused(self):
        with pytest.raises(DataError, match="too few"):
            choose(Threshold(), np.linspace(0, 1, 19), np.array([1.0]))
        with pytest.raises(DataError, match="all equal"):
            choose(Threshold(), np.full(50, 0.5), np.full(5, 0.5))
        with pytest.raises(DataError, match="not"):
            choose(Threshold(), np.full(50, np.nan), np.full(5, 0.5))
