"""The paired bootstrap and McNemar's test against known cases."""

import numpy as np
import pytest
from scipy import stats

from ml.config.schema import GATE_METRICS
from ml.evaluation import comparison
from ml.evaluation.comparison import (
    RESAMPLES,
    _bootstrap_counts,
    _weighted_metrics,
    compare,
    mcnemar,
)
from ml.evaluation.evaluate import Evaluation
from ml.evaluation.metrics import anomaly_metrics, classification_metrics
from ml.program.program import Outputs

CLASSES = ("a", "b", "c")


def _classifier(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    metrics = classification_metrics(probabilities, labels, CLASSES[: probabilities.shape[1]])
    return Evaluation(metrics, labels, Outputs(probabilities=probabilities))


def _detector(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> Evaluation:
    scores = scores.astype(np.float32)
    return Evaluation(
        anomaly_metrics(scores, labels == 1, threshold), labels, Outputs(scores=scores)
    )


def _binary_classifier(is_right: np.ndarray, labels: np.ndarray) -> Evaluation:
    """A classifier of two classes that is right where `is_right` is true."""
    return _classifier(np.eye(2)[np.where(is_right, labels, 1 - labels)], labels)


def _evaluation(task: str, seed: int, n: int = 200) -> Evaluation:
    """An evaluation of the same images by another model for each seed."""
    labels = np.random.default_rng(99).integers(0, 3 if task == "classification" else 2, n)
    random = np.random.default_rng(seed)
    if task == "classification":
        return _classifier(random.random((n, 3)) + 0.5 * np.eye(3)[labels], labels)
    # Rounded to two digits, so that scores of normal and anomalous images are often equal.
    return _detector(np.round(random.random(n) * 0.7 + 0.3 * labels, 2), labels)


@pytest.mark.parametrize("task", GATE_METRICS)
def test_equal_evaluations_differ_by_exactly_zero(task):
    comparison = compare(_evaluation(task, 1), _evaluation(task, 1), 0.95)
    assert tuple(comparison.differences) == GATE_METRICS[task]
    for difference in comparison.differences.values():
        assert (difference.difference, difference.lower, difference.upper) == (0, 0, 0)
    assert comparison.disagreements == 0
    assert comparison.p_value == (1.0 if task == "classification" else None)


@pytest.mark.parametrize("task", GATE_METRICS)
def test_a_metric_of_a_resample_is_that_of_the_images_repeated(task):
    evaluation = _evaluation(task, 2)
    counts = next(_bootstrap_counts(evaluation.labels, 5))
    for name, metric in _weighted_metrics(evaluation).items():
        for repeats, value in zip(counts.astype(int), metric(counts), strict=True):
            labels = np.repeat(evaluation.labels, repeats)
            if task == "classification":
                repeated = _classifier(
                    np.repeat(evaluation.outputs.probabilities, repeats, axis=0), labels
                )
            else:
                repeated = _detector(np.repeat(evaluation.outputs.scores, repeats), labels)
            assert value == pytest.approx(repeated.metrics[name]), name


def test_every_resample_has_as_many_images_of_each_class_as_there_are():
    labels = np.array([0] * 50 + [1] + [2] * 7)
    counts = np.concatenate(list(_bootstrap_counts(labels, 100)))
    assert counts.shape == (100, len(labels))
    for label, images in ((0, 50), (1, 1), (2, 7)):
        assert (counts[:, labels == label].sum(axis=1) == images).all()
    assert (counts[:, 0] != 1).any()


@pytest.mark.parametrize(
    ("cells", "blocks"),
    [(48, [4, 4, 2]), (59, [4, 4, 2]), (60, [5, 5]), (5, [1] * 10), (999, [10])],
)
def test_a_block_has_no_more_cells_than_the_limit_but_at_least_one_resample(
    cells, blocks, monkeypatch
):
    monkeypatch.setattr(comparison, "_MAX_CELLS", cells)
    assert [len(counts) for counts in _bootstrap_counts(np.zeros(12, dtype=int), 10)] == blocks


def test_a_single_anomaly_is_in_every_resample():
    labels = np.array([0] * 99 + [1])
    scores = np.linspace(0, 0.8, 100)
    comparison = compare(_detector(scores, labels), _detector(scores[::-1].copy(), labels), 0.95)
    auroc, tpr = comparison.differences["auroc"], comparison.differences["tpr"]
    assert (auroc.lower, auroc.upper) == (1, 1)
    assert (tpr.difference, tpr.lower, tpr.upper) == (1, 1, 1)
    # One ranks the anomaly first, the other ranks it last of a hundred.
    precision = comparison.differences["average_precision"]
    assert (precision.lower, precision.upper) == pytest.approx((0.99, 0.99))


def test_the_bounds_agree_with_scipy():
    random = np.random.default_rng(3)
    labels = np.zeros(400, dtype=int)  # of one class, so that there is nothing to stratify
    one, other = random.random(400) < 0.8, random.random(400) < 0.75
    comparison = compare(_binary_classifier(one, labels), _binary_classifier(other, labels), 0.95)
    accuracy = comparison.differences["accuracy"]
    expected = stats.bootstrap(
        (one.astype(float), other.astype(float)),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True, vectorized=True, method="percentile", confidence_level=0.9,
        n_resamples=RESAMPLES, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert accuracy.lower == pytest.approx(expected.low, abs=0.005)
    assert accuracy.upper == pytest.approx(expected.high, abs=0.005)
    assert accuracy.lower < accuracy.difference < accuracy.upper


@pytest.mark.slow
def test_the_lower_bound_is_below_the_true_difference_as_often_as_its_confidence_says():
    random = np.random.default_rng(4)
    labels = np.repeat([0, 1], [240, 60])
    covered = 0
    for _ in range(200):
        one = _binary_classifier(random.random(300) < 0.8, labels)
        other = _binary_classifier(random.random(300) < 0.85, labels)
        covered += compare(one, other, 0.95).differences["accuracy"].lower <= -0.05
    assert 0.91 <= covered / 200 <= 0.985


def test_a_repeated_comparison_gives_the_same_bounds():
    one, other = _evaluation("anomaly", 5), _evaluation("anomaly", 6)
    assert compare(one, other, 0.95) == compare(one, other, 0.95)


def test_more_confidence_gives_a_lower_bound():
    one, other = _evaluation("anomaly", 5), _evaluation("anomaly", 6)
    for name, difference in compare(one, other, 0.99).differences.items():
        assert difference.lower < compare(one, other, 0.8).differences[name].lower


def test_mcnemar_counts_the_images_that_only_one_gets_right():
    # Of 10 images that only one gets right, 1 to 9: 2 (C(10, 0) + C(10, 1)) / 2 ** 10.
    one = np.array([True] + [False] * 9 + [True] * 30 + [False] * 5)
    other = np.array([False] + [True] * 9 + [True] * 30 + [False] * 5)
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(22 / 1024)
    assert mcnemar(one, one) == 1
    labels = np.zeros(len(one), dtype=int)
    comparison = compare(_binary_classifier(one, labels), _binary_classifier(other, labels), 0.95)
    assert comparison.p_value == pytest.approx(22 / 1024)
    assert comparison.disagreements == 10


def test_a_metric_that_is_not_a_number_has_no_bounds():
    labels = np.array([0, 0, 1, 1])
    broken = _detector(np.array([0.1, 0.2, np.nan, 0.9]), labels)
    comparison = compare(broken, _detector(np.array([0.1, 0.2, 0.8, 0.9]), labels), 0.95)
    assert np.isnan(comparison.differences["auroc"].lower)


def test_a_metric_that_one_does_not_have_is_not_compared():
    labels = np.zeros(30, dtype=int)
    one = _detector(np.linspace(0, 1, 30), labels)
    assert set(compare(one, one, 0.95).differences) == {"tnr"}
