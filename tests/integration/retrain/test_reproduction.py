"""A run records what it can be reproduced from, and is."""

import json
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ml.cli import training
from ml.config.loading import configuration
from ml.data import dataset
from ml.errors import DataError
from ml.registry import client, programs, tracking, versions
from ml.retrain import reproduction, steps
from ml.storage.object_store import object_store
from tests.support import registered, stacks, synthetic_images


def _run_of(model: str, version: int) -> str:
    return client.mlflow_client().get_model_version(model, str(version)).run_id


def _use(monkeypatch, path: Path, text: str) -> None:
    path.write_text(text)
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(path))


def test_a_run_records_what_it_can_be_reproduced_from(trained):
    run_id = _run_of("moulds", 1)
    recording = reproduction.read_recording("moulds", run_id)
    assert recording.settings == configuration().model("moulds")
    assert object_store().exists(recording.snapshot_uri)
    assert recording.environment["package torch"] == torch.__version__.split("+")[0]
    assert recording.environment["device"] == "cpu"
    assert recording.environment["threads"] >= 1
    assert recording.environment["cpu capability"]
    assert all(recording.environment[name] for name in ("code", "python", "cpu"))


def test_a_run_is_reproduced_from_its_recording_and_not_from_the_configuration_of_today(
    trained, monkeypatch, tmp_path
):
    text = Path(os.environ["NIGHTSCORE_CONFIG"]).read_text()
    changed = text.replace("holdout_share: 0.3", "holdout_share: 0.2\n    seed: 5")
    _use(monkeypatch, tmp_path / "nightscore.yaml", changed.replace("epochs: 2", "epochs: 1"))
    run_id, champion = _run_of("moulds", 1), versions.version_of_alias("moulds", "champion")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        done = CliRunner().invoke(training.app, ["train", "moulds", "--from-run", run_id, "--json"])
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert done.exception is None
    result = json.loads(done.stdout)
    assert (result["weights_identical"], result["metrics_identical"]) == (True, True)
    assert (result["circumstances"], result["metrics"]) == ({}, {})
    assert result["repeats"] == run_id != result["run_id"]
    assert not result["promoted"]
    assert versions.version_of_alias("moulds", "champion") == champion
    assert versions.version_of_alias("moulds", "challenger") == result["version"]
    version = client.mlflow_client().get_model_version("moulds", str(result["version"]))
    assert version.tags["nightscore.repeats"] == run_id
    assert tracking.run_tags(result["run_id"])["nightscore.repeats"] == run_id
    assert tracking.read_json(result["run_id"], "repetition.json")["weights_identical"]


def test_differences_are_shown(trained):
    run_id = _run_of("moulds", 1)
    environment = tracking.read_json(run_id, tracking.ENVIRONMENT_FILE)
    settings = tracking.read_json(run_id, tracking.MODEL_FILE)
    tracking.log_json(run_id, tracking.ENVIRONMENT_FILE, environment | {"package torch": "1.0"})
    tracking.log_json(run_id, tracking.MODEL_FILE, settings | {"seed": 7})
    try:
        done = CliRunner().invoke(training.app, ["train", "moulds", "--from-run", run_id])
    finally:
        tracking.log_json(run_id, tracking.ENVIRONMENT_FILE, environment)
        tracking.log_json(run_id, tracking.MODEL_FILE, settings)
    assert done.exception is None
    (line,) = (line for line in done.stdout.splitlines() if "package torch" in line)
    assert "1.0" in line
    assert environment["package torch"] in line
    assert "weights NOT identical, metrics NOT identical" in done.stdout


def test_a_run_in_two_processes_is_logged_like_others_and_can_be_reproduced(
    trained, monkeypatch, tmp_path
):
    text = Path(os.environ["NIGHTSCORE_CONFIG"]).read_text()
    changed = text.replace("learning_rate: 0.1}", "learning_rate: 0.1, processes: 2}")
    assert changed != text
    _use(monkeypatch, tmp_path / "nightscore.yaml", changed)
    first = steps.gate(steps.evaluate(steps.train(steps.snapshot("shades"))))
    assert first["passed"]
    run = client.mlflow_client().get_run(first["run_id"])
    assert run.data.params["processes"] == "2"
    epochs = client.mlflow_client().get_metric_history(first["run_id"], "train_loss")
    assert [epoch.step for epoch in epochs] == [1, 2]
    result = steps.reproduce("shades", first["run_id"])
    assert (result["weights_identical"], result["metrics_identical"]) == (True, True)


class TestARunThatCannotBeReproduced:
    def test_there_is_none(self, trained):
        for unknown in ("0" * 32, "not-an-id"):
            with pytest.raises(DataError, match="There is no run"):
                steps.reproduce("moulds", unknown)

    def test_it_is_of_another_model(self, trained):
        with pytest.raises(DataError, match="is of shades, not of moulds"):
            steps.reproduce("moulds", _run_of("shades", 1))

    def test_it_is_unfinished(self, trained):
        run_id = tracking.start_run("moulds", None, {tracking.MODEL_TAG: "moulds"})
        with pytest.raises(DataError, match="is running"):
            steps.reproduce("moulds", run_id)
        tracking.end_run(run_id, failed=True)
        with pytest.raises(DataError, match="is failed"):
            steps.reproduce("moulds", run_id)

    def test_its_recording_is_incomplete(self, trained):
        run_id = tracking.start_run("moulds", None, {tracking.MODEL_TAG: "moulds"})
        tracking.end_run(run_id)
        with pytest.raises(DataError, match=r"has no environment\.json, evaluation\.json, model"):
            steps.reproduce("moulds", run_id)

    def test_its_snapshot_is_gone(self, trained):
        run_id = _run_of("moulds", 1)
        uri = tracking.run_tags(run_id)["nightscore.snapshot"]
        content, _ = object_store().get(uri)
        object_store().delete([uri])
        try:
            with pytest.raises(DataError, match="There is no snapshot"):
                steps.reproduce("moulds", run_id)
        finally:
            object_store().put(uri, content)

    def test_its_configuration_is_of_another_version(self, trained):
        run_id = _run_of("moulds", 1)
        settings = tracking.read_json(run_id, tracking.MODEL_FILE)
        tracking.log_json(run_id, tracking.MODEL_FILE, settings | {"task": "segmentation"})
        try:
            with pytest.raises(DataError, match="is not one of this version") as raised:
                steps.reproduce("moulds", run_id)
        finally:
            tracking.log_json(run_id, tracking.MODEL_FILE, settings)
        assert tracking.read_json(run_id, tracking.ENVIRONMENT_FILE)["code"] in raised.value.hint


def test_test_images_influence_neither_weights_nor_threshold(
    trained, bucket, monkeypatch, tmp_path
):
    first = _run_of("moulds", 1)
    _use(monkeypatch, tmp_path / "nightscore.yaml", stacks.CONFIGURATION.format(bucket=bucket))
    # The data set of the first run, with other test images.
    synthetic_images.write_dataset(tmp_path / "moulds", "moulds")
    for number, path in enumerate(sorted((tmp_path / "moulds" / "test").rglob("*.png"))):
        path.write_bytes(synthetic_images.shade(("dark", "light")[number % 2], number))
    dataset.import_(tmp_path / "moulds", "moulds", storage=bucket)
    second = steps.evaluate(steps.train(steps.snapshot("moulds")))["run_id"]
    one, other = (registered.tensors(run) for run in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    infos = [programs.fetch_from_run(run)[1] for run in (first, second)]
    assert infos[0].threshold == infos[1].threshold
    evaluations = [tracking.read_json(run, tracking.EVALUATION_FILE) for run in (first, second)]
    assert evaluations[0]["holdout"] == evaluations[1]["holdout"]
    assert evaluations[0]["test"] != evaluations[1]["test"]
