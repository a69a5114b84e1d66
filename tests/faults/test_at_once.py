"""Two scoring runs of one night, and a retraining, at the same time."""

from ml.registry import promotion, versions
from ml.retrain import steps as retrain
from tests.faults.conftest import trials
from tests.support import evidence, night
from tests.support.process import Scoring


def test_two_runs_of_a_night_at_once(outcome):
    result = outcome("two scoring runs of a night at once")
    for _ in range(trials(10)):
        tonight = night.make()
        both = [Scoring(tonight), Scoring(tonight)]
        for process in both:
            process.go()
        for process in both:
            counts = process.finish()
            assert counts["discovered"] == counts["scored"] + counts["rejected"]
        result.add(evidence.of_complete_night(tonight))
    assert result.is_clean


def test_a_retraining_while_a_night_is_scored(outcome):
    result = outcome("retraining and promotion during a scoring run")
    for _ in range(trials(3)):
        tonight = night.make(images=400)
        before = versions.version_of_alias("shades", "champion")
        process = Scoring(tonight)
        process.go()
        trained = retrain.retrain("shades")
        promotion.promote("shades", trained["version"], reason="fault suite", by="test")
        process.finish()
        result.add(evidence.of_complete_night(tonight))
        promotion.promote("shades", before, reason="as it was", by="test")
    assert result.is_clean
