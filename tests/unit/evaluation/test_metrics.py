"""Metrics: values computed by hand."""

import numpy as np
import pytest

from ml.evaluation.metrics import (
    anomaly_metrics,
    calibration,
    classification_metrics,
    score_reference,
)


def test_classification_metrics_of_a_small_example():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    metrics = classification_metrics(probabilities, np.array([0, 0, 1, 1]), ("cat", "dog"))
    assert metrics["n"] == 4
    assert metrics["accuracy"] == 0.75
    # cat: precision 2/3, recall 1; dog: precision 1, recall 1/2.
    assert metrics["per_class"]["cat"]["f1"] == pytest.approx(0.8)
    assert metrics["per_class"]["dog"]["f1"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert metrics["per_class"]["dog"]["support"] == 2


def test_anomaly_metrics_of_a_small_example():
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    metrics = anomaly_metrics(scores, np.array([False, False, True, True]), 0.4)
    # Of the four pairs, one is in the wrong order; the example of scikit-learn's documentation.
    assert metrics["auroc"] == 0.75
    assert metrics["average_precision"] == pytest.approx(0.8333, abs=1e-4)
    assert (metrics["tpr"], metrics["tnr"]) == (0.5, 0.5)


def test_a_metric_that_needs_both_kinds_of_image_is_none_without_them():
    metrics = anomaly_metrics(np.array([0.1, 0.2]), np.array([False, False]), 0.15)
    assert metrics["auroc"] is None
    assert metrics["tpr"] is None
    assert metrics["tnr"] == 0.5
    metrics = anomaly_metrics(np.array([0.1, 0.2]), np.array([True, True]), 0.15)
    assert metrics["auroc"] is None and metrics["average_precision"] is None
    assert metrics["tpr"] == 0.5
    assert metrics["tnr"] is None


def test_an_output_that_is_not_a_number_makes_the_metrics_nan():
    broken = np.array([[0.9, 0.1], [np.nan, np.nan]])
    metrics = classification_metrics(broken, np.array([0, 0]), ("cat", "dog"))
    assert np.isnan(metrics["accuracy"]) and np.isnan(metrics["macro_f1"])
    metrics = anomaly_metrics(np.array([0.1, np.nan]), np.array([False, True]), 0.5)
    assert np.isnan(metrics["auroc"]) and np.isnan(metrics["average_precision"])


def test_calibration_of_a_small_example():
    # Of three images with a confidence of 0.9 two are right; the one with 0.55 is not.
    result = calibration(np.array([0.9, 0.9, 0.9, 0.55]), np.array([True, True, False, False]))
    assert result.error == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.55)
    assert len(result.counts) == 15
    assert result.counts.sum() == 4
    assert result.rates[13] == pytest.approx(2 / 3)
    assert np.isnan(result.rates[0])


def test_calibration_counts_a_probability_on_an_edge_in_the_bin_below():
    result = calibration(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    assert result.counts.tolist() == [2, 1]


def test_calibration_agrees_with_scikit_learn():
    from sklearn.calibration import calibration_curve

    random = np.random.default_rng(0)
    probabilities = random.random(500)
    outcomes = random.random(500) < probabilities**2
    rates, means = calibration_curve(outcomes, probabilities, n_bins=15, strategy="uniform")
    result = calibration(probabilities, outcomes)
    np.testing.assert_allclose(result.rates, rates)
    np.testing.assert_allclose(result.confidences, means)


def test_a_reference_has_bins_of_equal_shares_and_an_edge_belongs_to_the_bin_above():
    reference = score_reference(np.array([0, 1, 2, 3, 4]), bins=4)
    assert reference == {"edges": [1, 2, 3], "shares": [0.2, 0.2, 0.2, 0.4]}
    reference = score_reference(np.linspace(0, 1, 101))
    assert reference["edges"] == pytest.approx(np.arange(1, 10) / 10)


def test_a_reference_counts_every_value_once():
    values = np.concatenate([np.zeros(50), np.linspace(0, 1, 50)])
    reference = score_reference(values)
    assert sum(reference["shares"]) == pytest.approx(1)
    assert len(reference["shares"]) == len(reference["edges"]) + 1
    assert reference["edges"] == sorted(set(reference["edges"]))
