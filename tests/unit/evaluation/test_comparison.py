"""The paired bootstrap and McNemar's test against known cases."""

import numpy as np
import pytest
from scipy import stats

from ml.config.schema import GATE_METRICS
from ml.evaluation import comparison
from ml.evaluation.comparison import RESAMPLES, _resamples, _statistics, compare, mcnemar
from ml.evaluation.evaluate import Evaluation
from ml.evaluation.metrics import anomaly_metrics, classification_metrics
from ml.program.program import Outputs

CLASSES = ("a", "b", "c")


def _classified(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    metrics = classification_metrics(probabilities, labels, CLASSES[: probabilities.shape[1]])
    return Evaluation(metrics, labels, Outputs(probabilities=probabilities))


def _scored(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> Evaluation:
    scores = scores.astype(np.float32)
    return Evaluation(
        anomaly_metrics(scores, labels == 1, threshold), labels, Outputs(scores=scores)
    )


def _answers(right: np.ndarray, labels: np.ndarray) -> Evaluation:
    """A classifier of two classes that is right where `right` is true."""
    return _classified(np.eye(2)[np.where(right, labels, 1 - labels)], labels)


def _examples(task: str, seed: int, n: int = 200) -> Evaluation:
    """Evaluations of the same images by as many models as there are seeds."""
    labels = np.random.default_rng(99).integers(0, 3 if task == "classification" else 2, n)
    random = np.random.default_rng(seed)
    if task == "classification":
        return _classified(random.random((n, 3)) + 0.5 * np.eye(3)[labels], labels)
    # Of two digits, so that scores of both kinds are often equal.
    return _scored(np.round(random.random(n) * 0.7 + 0.3 * labels, 2), labels)


@pytest.mark.parametrize("task", GATE_METRICS)
def test_equal_evaluations_differ_by_exactly_nothing(task):
    found = compare(_examples(task, 1), _examples(task, 1), 0.95)
    assert tuple(found.differences) == GATE_METRICS[task]
    for difference in found.differences.values():
        assert (difference.difference, difference.lower, difference.upper) == (0, 0, 0)
    assert found.disagreements == 0
    assert found.p_value == (1.0 if task == "classification" else None)


@pytest.mark.parametrize("task", GATE_METRICS)
def test_a_metric_of_a_resample_is_that_of_the_images_repeated(task):
    evaluation = _examples(task, 2)
    counts = next(_resamples(evaluation.labels, 5))
    for name, statistic in _statistics(evaluation).items():
        for times, found in zip(counts.astype(int), statistic(counts), strict=True):
            labels = np.repeat(evaluation.labels, times)
            if task == "classification":
                repeated = _classified(
                    np.repeat(evaluation.outputs.probabilities, times, axis=0), labels
                )
            else:
                repeated = _scored(np.repeat(evaluation.outputs.scores, times), labels)
            assert found == pytest.approx(repeated.metrics[name]), name


def test_every_resample_has_as_many_images_of_each_class_as_there_are():
    labels = np.array([0] * 50 + [1] + [2] * 7)
    counts = np.concatenate(list(_resamples(labels, 100)))
    assert counts.shape == (100, len(labels))
    for label, images in ((0, 50), (1, 1), (2, 7)):
        assert (counts[:, labels == label].sum(axis=1) == images).all()
    assert (counts[:, 0] != 1).any()


@pytest.mark.parametrize(
    ("cells", "blocks"),
    [(48, [4, 4, 2]), (59, [4, 4, 2]), (60, [5, 5]), (5, [1] * 10), (999, [10])],
)
def test_no_more_cells_than_the_limit_are_held_at_once_but_a_resample(cells, blocks, monkeypatch):
    monkeypatch.setattr(comparison, "_CELLS", cells)
    assert [len(counts) for counts in _resamples(np.zeros(12, dtype=int), 10)] == blocks


def test_a_single_anomaly_is_in_every_resample():
    labels = np.array([0] * 99 + [1])
    scores = np.linspace(0, 0.8, 100)
    found = compare(_scored(scores, labels), _scored(scores[::-1].copy(), labels), 0.95)
    ranked, hit = found.differences["auroc"], found.differences["tpr"]
    assert (ranked.lower, ranked.upper) == (1, 1)
    assert (hit.difference, hit.lower, hit.upper) == (1, 1, 1)
    # The anomaly comes first for one, and last of a hundred for the other.
    precision = found.differences["average_precision"]
    assert (precision.lower, precision.upper) == pytest.approx((0.99, 0.99))


def test_the_bounds_agree_with_scipy():
    random = np.random.default_rng(3)
    labels = np.zeros(400, dtype=int)  # of one class, where resampling within classes is resampling
    one, other = random.random(400) < 0.8, random.random(400) < 0.75
    found = compare(_answers(one, labels), _answers(other, labels), 0.95).differences["accuracy"]
    expected = stats.bootstrap(
        (one.astype(float), other.astype(float)),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True, vectorized=True, method="percentile", confidence_level=0.9,
        n_resamples=RESAMPLES, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert found.lower == pytest.approx(expected.low, abs=0.005)
    assert found.upper == pytest.approx(expected.high, abs=0.005)
    assert found.lower < found.difference < found.upper


@pytest.mark.slow
def test_the_lower_bound_is_below_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(4)
    labels = np.repeat([0, 1], [240, 60])
    covered = 0
    for _ in range(200):
        one = _answers(random.random(300) < 0.8, labels)
        other = _answers(random.random(300) < 0.85, labels)
        covered += compare(one, other, 0.95).differences["accuracy"].lower <= -0.05
    assert 0.91 <= covered / 200 <= 0.985


def test_a_repeated_comparison_gives_the_same_bounds():
    one, other = _examples("anomaly", 5), _examples("anomaly", 6)
    assert compare(one, other, 0.95) == compare(one, other, 0.95)


def test_more_confidence_gives_a_lower_bound():
    one, other = _examples("anomaly", 5), _examples("anomaly", 6)
    for name, sure in compare(one, other, 0.99).differences.items():
        assert sure.lower < compare(one, other, 0.8).differences[name].lower


def test_mcnemar_counts_what_only_one_gets_right():
    # Of 10 images that only one gets right, 1 to 9: 2 (C(10, 0) + C(10, 1)) / 2 ** 10.
    one = np.array([True] + [False] * 9 + [True] * 30 + [False] * 5)
    other = np.array([False] + [True] * 9 + [True] * 30 + [False] * 5)
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(22 / 1024)
    assert mcnemar(one, one) == 1
    labels = np.zeros(len(one), dtype=int)
    found = compare(_answers(one, labels), _answers(other, labels), 0.95)
    assert found.p_value == pytest.approx(22 / 1024)
    assert found.disagreements == 10


def test_outputs_that_are_no_numbers_have_no_bounds():
    labels = np.array([0, 0, 1, 1])
    broken = _scored(np.array([0.1, 0.2, np.nan, 0.9]), labels)
    found = compare(broken, _scored(np.array([0.1, 0.2, 0.8, 0.9]), labels), 0.95)
    assert np.isnan(found.differences["auroc"].lower)


def test_what_one_cannot_measure_is_not_compared():
    labels = np.zeros(30, dtype=int)
    one = _scored(np.linspace(0, 1, 30), labels)
    assert set(compare(one, one, 0.95).differences) == {"tnr"}
