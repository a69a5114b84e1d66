"""What the comparison of models computes, on figures checked by hand, and a quick run of it."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from benchmarks.errors import ContenderError
from benchmarks.models import compare, dataset, figures
from benchmarks.models.compare import OURS, SHORT, Contender
from ml.config.loading import load
from ml.config.schema import Threshold
from ml.errors import DataError
from ml.program.info import ANOMALY
from ml.training.thresholds import choose_threshold
from tests.support import synthetic_images

MODEL = load(compare.REPOSITORY / "nightscore.yaml").model(compare.NAMES[ANOMALY])


def test_an_oracle_of_a_small_example():
    scores = np.array([0.1, 0.3, 0.2, 0.8, 0.9])
    anomalous = np.array([False, False, True, True, True])
    # From 0.8 on: 2 of 3 found, no alarm. From 0.2 on: all found, 1 of 2 normal ones flagged.
    assert figures.oracle(scores, anomalous) == pytest.approx((2 / 3, 1))
    assert figures.oracle(scores, scores > 0.2) == (1, 1)


def test_no_threshold_is_better_than_the_oracle():
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, anomalous = random.integers(0, 12, 40) / 12, random.random(40) < 0.3
        best = max(
            (scores[anomalous] >= t).mean() + (scores[~anomalous] < t).mean()
            for t in np.linspace(0, 1.1, 133)
        )
        assert sum(figures.oracle(scores, anomalous)) == pytest.approx(best)


def test_an_honest_threshold_does_not_see_the_test_images():
    random = np.random.default_rng(1)
    labels = np.arange(200) % 2
    holdout = random.uniform(0, 0.4, 200) + 0.6 * labels, labels
    one = figures.judged(Threshold(), holdout, holdout)
    other = figures.judged(Threshold(), holdout, (holdout[0] / 2, labels))
    assert one["threshold"] == other["threshold"]
    assert (one["tpr"], one["tnr"]) == (1, 1)
    # All scores halved: the honest threshold is too high for them, the oracle's is not.
    assert other["tpr"] < 0.5
    assert (other["oracle_tpr"], other["oracle_tnr"], other["auroc"]) == (1, 1, 1)


def test_the_unit_of_a_distance_decides_nothing():
    random = np.random.default_rng(2)
    normal, anomalous = random.gamma(5, 1, 300), random.gamma(5, 3, 60)
    flags = []
    for unit in (0.01, 1, 1000):
        both = [figures.unit_scores(unit * one, unit * normal) for one in (normal, anomalous)]
        assert all(((one > 0) & (one < 1)).all() for one in both)
        assert (np.argsort(both[0], kind="stable") == np.argsort(normal, kind="stable")).all()
        flags.append(np.concatenate(both) >= choose_threshold(Threshold(), *both).value)
    assert (flags[0] == flags[1]).all() and (flags[1] == flags[2]).all()
    assert 0 < flags[0].mean() < 1


def test_figures_over_seeds():
    found = figures.over_seeds([{"a": 1.0, "b": 2.0}, {"a": 4.0, "b": None}, {"a": 1.0, "b": 3.0}])
    assert found["a"] == {"mean": 2, "min": 1, "max": 4}
    # Not reached with every seed: a mean of the others would flatter.
    assert found["b"] is None


def test_an_epoch_is_extrapolated_from_its_steps():
    # 129 images are three batches of 64.
    assert figures.epoch_seconds([1.0, 3.0], 129, 64) == 6
    assert figures.epoch_seconds([1.0, 3.0], 128, 64) == 4


def test_seconds_to_an_accuracy_end_with_the_epoch_that_reaches_it():
    epochs = [(10.0, 0.5), (12.0, 0.82), (11.0, 0.81)]
    assert figures.seconds_to(0.82, epochs) == 22
    assert figures.seconds_to(0.9, epochs) is None


def test_a_rate_leaves_the_first_pass_out():
    calls = []
    rate = figures.images_per_second(lambda: calls.append(1), 5, least=0)
    assert len(calls) == 2
    assert rate > 0


def test_the_notebooks_time_is_told_by_its_epochs():
    def rows(seconds):
        runs = {
            OURS: {"seconds_to_wanted": seconds},
            SHORT: {"seconds_to_wanted": 30.0},
            "notebook": {"epoch_seconds": 900.0},
        }
        return [{"name": n, "figures": figures.over_seeds([run])} for n, run in runs.items()]

    ours, short = compare.remarks(rows(100.0))
    assert "nightscore" in ours and "0.82: 9 for each epoch" in ours
    assert "short" in short and "0.82: 30 for each epoch" in short
    assert "did not reach 0.82" in compare.remarks(rows(None))[0]
    assert compare.remarks(rows(100.0)[:2]) == []


def test_a_contender_that_fails_or_cannot_run_does_not_stop_the_others():
    def fail(seed):
        raise ContenderError("padim ended with 1")

    contenders = {
        "padim": Contender("", fail),
        "efficientad": Contender("needs weights", None),
        OURS: Contender("", lambda seed: {"auroc": 0.5 + seed}),
    }
    said = []
    failed, missing, ours = compare.measure(contenders, [0, 1], said.append)
    assert (failed["figures"], failed["note"]) == (None, "failed")
    assert (missing["figures"], missing["note"]) == (None, "needs weights")
    assert ours["figures"]["auroc"] == {"mean": 1.0, "min": 0.5, "max": 1.5}
    assert said[0] == "padim ended with 1"


@pytest.fixture(scope="module")
def moulds(tmp_path_factory):
    """300 normal moulds to train from, 40 of them twice; known anomalies; test images."""
    folder = tmp_path_factory.mktemp("data") / "moulds"
    number = 0
    for split, label, count in (
        ("train", "normal", 260),
        ("calibration", "anomalous", 30),
        ("test", "normal", 30),
        ("test", "anomalous", 10),
    ):
        (folder / split / label).mkdir(parents=True)
        for _ in range(count):
            number += 1
            content = synthetic_images.mould(label, number)
            (folder / split / label / f"{number:04}.png").write_bytes(content)
            if number <= 40:
                (folder / split / label / f"copy-{number:04}.png").write_bytes(content)
    return folder


def test_images_are_divided_as_in_a_snapshot_and_copies_stay_together(moulds, tmp_path):
    parts = dataset.load(moulds, MODEL)
    assert len(parts.train) + len(parts.holdout) == 330
    assert (len(parts.test), parts.test.labels.sum()) == (40, 10)
    assert parts.train.pixels.shape[1:] == (3, *MODEL.input_size)
    assert {row.group for row in parts.train.rows}.isdisjoint(
        row.group for row in parts.holdout.rows
    )
    for part in (parts.train, parts.holdout):
        assert 0 < part.labels.sum() < len(part)
    with tarfile.open(tmp_path / "moulds.tar", "w") as tar:
        tar.add(moulds, "moulds")
    again = dataset.load(tmp_path / "moulds.tar", MODEL)
    assert [row.uri for row in again.train.rows] == [row.uri for row in parts.train.rows]
    assert np.array_equal(again.train.pixels, parts.train.pixels)


def test_few_images_are_read_for_a_quick_run_and_none_to_test_on_is_an_error(moulds, tmp_path):
    parts = dataset.load(moulds, MODEL, most=200)
    assert len(parts.train) + len(parts.holdout) == 230
    shutil.copytree(moulds / "train", tmp_path / "some" / "train")
    with pytest.raises(DataError, match="two kinds"):
        dataset.load(tmp_path / "some", MODEL)


def test_a_kind_is_left_out_of_training_only(moulds):
    parts = dataset.load(moulds, MODEL)
    model, same = compare._left_out("empty", MODEL, parts)
    assert model.options["synthetic"] == ["spill", "torn"]
    assert model.options["width"] == MODEL.options["width"]
    assert same is parts
    model, fewer = compare._left_out(compare.KNOWN, MODEL, parts)
    assert model == MODEL
    assert fewer.train.labels.sum() == 0 and len(fewer.train) == len(fewer.train.pixels)
    assert len(fewer.train) == (parts.train.labels == 0).sum()
    assert fewer.holdout is parts.holdout
    model, fewer = compare._left_out("spill+known", MODEL, parts)
    assert "spill" not in model.options["synthetic"]
    assert fewer.train.labels.sum() == 0
    with pytest.raises(SystemExit, match="dust: known are known, empty, spill"):
        compare._left_out("dust", MODEL, parts)


@pytest.mark.slow
def test_a_quick_run_prints_a_table_and_draws_the_errors(moulds, tmp_path, capsys):
    written = {"--json": tmp_path / "found.json", "--errors": tmp_path / "errors.png"}
    options = [text for pair in written.items() for text in map(str, pair)]
    quick = ["--task", "anomaly", "--data", str(moulds), "--quick", *options]
    compare.main([*quick, "--only", OURS, "efficientad"])
    printed = capsys.readouterr().out
    assert "QUICK" in printed and "oracle's" in printed
    document = json.loads((tmp_path / "found.json").read_text())
    ours, missing = document["rows"]
    assert (ours["name"], ours["seeds"], missing["figures"]) == (OURS, 1, None)
    found = {key: one["mean"] for key, one in ours["figures"].items()}
    assert 0 <= found["auroc"] <= 1
    assert found["oracle_tpr"] + found["oracle_tnr"] >= found["tpr"] + found["tnr"]
    assert min(found[key] for key in ("train_seconds", "images_per_second", "size_mb")) > 0
    assert Image.open(tmp_path / "errors.png").format == "PNG"
