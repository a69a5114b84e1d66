"""The model card of a version."""

import re
from dataclasses import asdict

import numpy as np

from ml.config.schema import Model, Threshold
from ml.evaluation.comparison import Comparison, Difference
from ml.evaluation.gate import Champion, decide
from ml.retrain.model_card import render
from ml.retrain.values import Assessment
from ml.training.thresholds import choose_threshold

SETTINGS = Model(
    task="classification",
    dataset="d",
    architecture="residual_network",
    input_size=(32, 32),
    training={"cpu": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}},
)


def _card(classes: int, name_length: int = 5, synthetic: bool = False) -> str:
    row = {"precision": 0.91, "recall": 0.92, "f1": 0.915, "support": 500}
    holdout = {
        "n": 5000,
        "accuracy": 0.92,
        "macro_f1": 0.915,
        "per_class": {f"{i:0{name_length}}": row for i in range(classes)},
        "calibration_error": 0.0123,
    }
    differences = {
        "accuracy": Difference(0.92, 0.91, 0.01, 0.004, 0.016),
        "macro_f1": Difference(0.915, 0.905, 0.01, 0.003, 0.017),
    }
    comparison = Comparison(5000, 0.95, 2000, 321, 0.0042, differences)
    champion = Champion(7, {"accuracy": 0.91, "macro_f1": 0.905}, comparison)
    return render(
        SETTINGS,
        Assessment(holdout, {"n": 10_000, "accuracy": 0.9}, champion, {}),
        decide(SETTINGS.gate, SETTINGS.task, holdout, champion),
        None,
        snapshot_uri="s3://bucket/snapshots/d/hash.parquet",
        synthetic=synthetic,
    )


def test_it_shows_the_gate_the_metrics_and_both_versions_side_by_side():
    text = _card(3)
    assert text.startswith("**Gate passed:** accuracy 0.9200")
    assert "| accuracy less that of version 7, lower bound | 0.0040 | -0.0100 | yes |" in text
    assert "| n | 5,000 | 10,000 |" in text
    assert "| calibration_error | 0.0123 |  |" in text
    assert "| accuracy | 0.9200 | 0.9100 | +0.0100 (+0.0040 to +0.0160) |" in text
    assert "They judge 321 of 5,000 held-out images differently." in text
    assert "p = 0.0042" in text
    assert "| 00002 | 0.9100 | 0.9200 | 0.9150 | 500 |" in text
    assert _card(3, synthetic=True).startswith("**SYNTHETIC")


def test_it_fits_into_a_description_in_mlflow():
    assert len(_card(20, name_length=60, synthetic=True)) < 5000
    assert "| class," not in _card(21)
    assert "| class," not in _card(0)
    assert all("| class," in _card(classes) for classes in (1, 20))


def test_it_shows_how_certain_a_threshold_is_and_the_policy_it_fell_back_from():
    holdout = {"n": 120, "auroc": None}
    normal = np.linspace(0, 0.5, 100)
    text = render(
        SETTINGS,
        Assessment(holdout, None, None, {}),
        decide(SETTINGS.gate, "anomaly", holdout, None),
        asdict(choose_threshold(Threshold(policy="cost"), normal, np.empty(0))),
        snapshot_uri="s3://bucket/snapshots/d/hash.parquet",
        synthetic=False,
    )
    assert "| policy | target_fpr (cost needs calibration anomalies) |" in text
    assert re.search(r"\| TNR \| 0\.9900 \| 0\.9\d+ to 0\.99\d+ \| 100 normal \|", text)
    assert "TPR" not in text


def test_the_name_of_a_class_is_shown_and_not_interpreted():
    hostile = "a|b <img src=x onerror=alert(1)> [x](javascript:alert(1)) `c` *d*\n| e"
    row = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 5}
    holdout = {"n": 10, "accuracy": 0.9, "macro_f1": 0.9, "per_class": {hostile: row, "good": row}}
    gate = SETTINGS.gate.model_copy(update={"minimum_recall": 0.5})
    decision = decide(gate, SETTINGS.task, holdout, None)
    assessment = Assessment(holdout, None, None, {})
    uri = "s3://b/s.parquet"
    text = render(SETTINGS, assessment, decision, None, snapshot_uri=uri, synthetic=False)
    lines = [line for line in text.splitlines() if "onerror" in line]
    assert len(lines) == 3  # the reason, the check of its recall, and its own row
    for line in lines:
        assert not re.search(r"(?<!\\)[<\[`]", line)
        if line.startswith("|"):
            bars = len(re.findall(r"(?<!\\)\|", line))
            assert bars == (5 if "recall of" in line else 6)
