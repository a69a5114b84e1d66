"""Thresholds: the policies, what they fall back to, and how certain a threshold is."""

import numpy as np
import pytest
from scipy.stats import beta

from ml.config.schema import Threshold
from ml.errors import DataError
from ml.training import thresholds
from ml.training.threshold_policies import MinimumCost
from ml.training.thresholds import choose_threshold, quantile_threshold


def _scores(seed: int, normal: int = 300, anomalous: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Scores of normal and anomalous images that overlap, float32 as those of a network."""
    random = np.random.default_rng(seed)
    return (
        random.beta(1, 4, normal).astype(np.float32),
        random.beta(4, 2, anomalous).astype(np.float32),
    )


class TestChoose:
    def test_the_midpoint_lies_between_normal_and_anomalous_scores(self):
        random = np.random.default_rng(0)
        normal, anomalous = random.uniform(0, 0.2, 500), random.uniform(0.8, 1, 50)
        chosen = choose_threshold(Threshold(), normal, anomalous)
        assert chosen.policy == "midpoint"
        assert 0.2 < chosen.value < 0.8

    def test_without_anomalies_the_false_alarm_rate_decides(self):
        normal = np.arange(1000) / 1000
        chosen = choose_threshold(Threshold(target_fpr=0.05), normal, np.empty(0))
        assert chosen.policy == "target_fpr"
        assert (normal >= chosen.value).mean() == pytest.approx(0.05, abs=0.002)

    @pytest.mark.parametrize("policy", ["midpoint", "target_fpr"])
    def test_a_threshold_is_a_float32_as_scores_are(self, policy):
        normal = np.random.default_rng(1).uniform(0, 0.5, 100).astype(np.float32)
        chosen = choose_threshold(
            Threshold(policy=policy), normal, np.array([0.9, 0.95], np.float32)
        )
        assert float(np.float32(chosen.value)) == chosen.value

    def test_too_few_or_equal_scores_are_refused(self):
        with pytest.raises(DataError, match="too few"):
            choose_threshold(Threshold(), np.linspace(0, 1, 19), np.array([1.0]))
        with pytest.raises(DataError, match="all equal"):
            choose_threshold(Threshold(), np.full(50, 0.5), np.full(5, 0.5))
        with pytest.raises(DataError, match="not"):
            choose_threshold(Threshold(), np.full(50, np.nan), np.full(5, 0.5))


class TestCost:
    @pytest.mark.parametrize(
        ("miss_cost", "lowest", "highest"),
        [
            # The cost per image: 0.1 * miss_cost * FNR + 0.9 * FPR. To flag the anomaly at 0.3
            # saves 0.05 * miss_cost, and flags the two normal images at 0.4: 0.9 * 2 / 40.
            (0.8, 0.4, 0.9),
            (1.0, 0.1, 0.3),
        ],
    )
    def test_the_optimum_of_a_small_example(self, miss_cost, lowest, highest):
        normal = np.array([0.1] * 38 + [0.4] * 2, dtype=np.float32)
        anomalous = np.array([0.3, 0.9], dtype=np.float32)
        policy = Threshold(policy="cost", miss_cost=miss_cost, anomaly_share=0.1)
        chosen = choose_threshold(policy, normal, anomalous)
        assert (chosen.policy, chosen.asked) == ("cost", "cost")
        logits = np.log([lowest / (1 - lowest), highest / (1 - highest)])
        assert chosen.value == pytest.approx(1 / (1 + np.exp(-logits.mean())), abs=1e-6)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("miss_cost", [1.0, 10.0, 200.0])
    def test_no_other_threshold_costs_less(self, seed, miss_cost):
        normal, anomalous = _scores(seed)
        policy = Threshold(policy="cost", miss_cost=miss_cost, anomaly_share=0.05)
        chosen = choose_threshold(policy, normal, anomalous)
        cost = MinimumCost(miss_cost, 1.0, 0.05)
        values = np.concatenate([normal, anomalous, [0, 2]])
        costs = [cost.expected_cost(value, normal, anomalous) for value in values]
        assert chosen.detail["expected_cost"] == pytest.approx(min(costs), abs=1e-12)

    def test_the_widest_of_the_cheapest_intervals_counts(self):
        # To flag the anomaly at 0.2 saves 0.25, and the five normal images above it cost as much:
        # thresholds of 0.15 to 0.2 and of 0.3 to 0.9 cost the same, and the second interval is
        # wider.
        normal = np.array([0.15] * 15 + [0.3] * 5, dtype=np.float32)
        anomalous = np.array([0.2, 0.9], dtype=np.float32)
        policy = Threshold(policy="cost", miss_cost=1, false_alarm_cost=2, anomaly_share=0.5)
        value = choose_threshold(policy, normal, anomalous).value
        assert value == pytest.approx(1 / (1 + np.exp(-(np.log(3 / 7) + np.log(9)) / 2)), abs=1e-6)

    def test_scores_that_only_float32_tells_apart_are_told_apart(self):
        one = np.float32(1)
        anomaly = np.nextafter(one, np.float32(0))
        normal = np.full(30, np.nextafter(anomaly, np.float32(0)))
        chosen = choose_threshold(Threshold(policy="cost"), normal, np.array([anomaly, one]))
        assert (chosen.fpr.flagged, chosen.tpr.flagged) == (0, 2)

    def test_where_only_a_miss_costs_everything_is_flagged(self):
        normal = np.linspace(0.5, 1, 50).astype(np.float32)
        policy = Threshold(policy="cost", miss_cost=1e6, anomaly_share=0.5)
        chosen = choose_threshold(policy, normal, np.array([0.1, 0.2], dtype=np.float32))
        assert (chosen.fpr.flagged, chosen.tpr.flagged) == (50, 2)

    def test_where_flagging_never_pays_nothing_is_flagged(self):
        normal = np.linspace(0.5, 1, 50).astype(np.float32)
        policy = Threshold(policy="cost", miss_cost=0.01, anomaly_share=0.01)
        chosen = choose_threshold(policy, normal, np.array([0.1, 0.2], dtype=np.float32))
        assert (chosen.fpr.flagged, chosen.tpr.flagged) == (0, 0)


@pytest.mark.parametrize("policy", ["midpoint", "cost"])
def test_without_anomalies_the_false_alarm_rate_decides_and_is_recorded(policy):
    normal, _ = _scores(0)
    chosen = choose_threshold(
        Threshold(policy=policy, target_fpr=0.05), normal, np.empty(0, np.float32)
    )
    assert (chosen.policy, chosen.asked) == ("target_fpr", policy)
    assert chosen.tpr is None
    assert chosen.fpr.value <= 0.05
    assert chosen.detail == {"target_fpr": 0.05}


def test_the_interval_leaves_out_a_fortieth_of_the_resamples_on_either_side():
    values = iter(range(thresholds.RESAMPLES))
    interval = thresholds._bootstrap(lambda *_: float(next(values)), *_scores(0), None)
    assert interval == pytest.approx((0.025 * 999, 0.975 * 999))


def test_a_score_that_equals_the_threshold_is_flagged():
    # Consecutive float32s: the next one above the sixth of 21 is the seventh itself.
    scores = np.float32(0.5) + np.arange(21, dtype=np.float32) * np.float32(2**-24)
    policy = Threshold(policy="target_fpr", target_fpr=0.75)
    chosen = choose_threshold(policy, scores, np.append(scores[6], np.float32(0.1)))
    assert chosen.value == scores[6]
    assert (chosen.fpr.flagged, chosen.tpr.flagged) == (15, 1)


@pytest.mark.parametrize("policy", ["midpoint", "cost", "target_fpr"])
class TestConfidence:
    def test_rates_have_the_exact_binomial_interval(self, policy):
        normal, anomalous = _scores(1)
        chosen = choose_threshold(Threshold(policy=policy), normal, anomalous)
        for rate, scores in ((chosen.fpr, normal), (chosen.tpr, anomalous)):
            flagged, n = int((scores >= chosen.value).sum()), len(scores)
            assert (rate.flagged, rate.images, rate.value) == (flagged, n, flagged / n)
            # Clopper and Pearson's limits as quantiles of beta distributions.
            low = beta.ppf(0.025, flagged, n - flagged + 1) if flagged else 0
            high = beta.ppf(0.975, flagged + 1, n - flagged) if flagged < n else 1
            assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-9)

    def test_the_interval_holds_the_threshold_and_is_the_same_every_time(self, policy):
        normal, anomalous = _scores(2)
        chosen = choose_threshold(Threshold(policy=policy), normal, anomalous)
        assert chosen.low <= chosen.value <= chosen.high
        assert chosen.low < chosen.high
        assert choose_threshold(Threshold(policy=policy), normal, anomalous) == chosen

    def test_more_images_narrow_the_interval(self, policy):
        few = choose_threshold(Threshold(policy=policy), *_scores(3, 100, 20))
        many = choose_threshold(Threshold(policy=policy), *_scores(3, 5000, 1000))
        assert many.high - many.low < few.high - few.low

    def test_a_single_anomaly_is_enough(self, policy):
        normal, _ = _scores(4)
        chosen = choose_threshold(Threshold(policy=policy), normal, np.array([0.99], np.float32))
        assert chosen.policy == policy
        assert chosen.tpr.images == 1

    def test_a_threshold_is_a_float32_as_scores_are(self, policy):
        chosen = choose_threshold(Threshold(policy=policy), *_scores(5))
        assert float(np.float32(chosen.value)) == chosen.value


class TestScenes:
    def _scenes(self) -> tuple[np.ndarray, np.ndarray]:
        """20 scenes of 25 frames that differ little from each other."""
        random = np.random.default_rng(6)
        groups = np.repeat(np.arange(20), 25)
        scores = random.uniform(0.1, 0.8, 20)[groups] + random.normal(0, 0.005, 500)
        return scores.astype(np.float32), groups

    def test_frames_of_few_scenes_give_a_wider_interval_than_as_many_images(self):
        normal, groups = self._scenes()
        policy, none = Threshold(policy="target_fpr", target_fpr=0.1), np.empty(0, np.float32)
        by_image = choose_threshold(policy, normal, none)
        by_scene = choose_threshold(policy, normal, none, groups)
        assert by_scene.value == by_image.value
        assert by_scene.high - by_scene.low > 2 * (by_image.high - by_image.low)

    def test_their_order_changes_nothing(self):
        normal, groups = self._scenes()
        _, anomalous = _scores(6)
        shuffled = np.random.default_rng(7).permutation(len(normal))
        policy = Threshold(policy="cost")
        one = choose_threshold(policy, normal, anomalous, groups)
        assert choose_threshold(policy, normal[shuffled], anomalous, groups[shuffled]) == one

    def test_scenes_may_differ_in_size(self):
        normal = np.linspace(0.1, 0.5, 20).astype(np.float32)
        groups = np.array([0] * 18 + [1, 2])
        chosen = choose_threshold(Threshold(), normal, np.empty(0, np.float32), groups)
        assert chosen.low <= chosen.high


def test_the_configured_share_of_normal_images_is_marked_for_review():
    novelty = np.random.default_rng(8).uniform(0, 1, 2000).astype(np.float32)
    threshold = quantile_threshold(novelty, 0.02)
    assert float(np.float32(threshold)) == threshold
    assert (novelty >= threshold).sum() == 40
    with pytest.raises(DataError, match="too few"):
        quantile_threshold(novelty[:19], 0.02)
