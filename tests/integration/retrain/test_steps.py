"""The steps of a retrain DAG on real MLflow, S3 and Postgres."""

import csv
import os
import re
import tempfile
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ml.config.loading import configuration
from ml.database.connection import analyst_engine, transaction
from ml.database.tables import ModelVersion, Promotion
from ml.errors import DataError, ServiceError
from ml.registry import client, promotion, tracking, versions
from ml.retrain import steps
from ml.retrain.values import Assessment, Value
from ml.storage.object_store import object_store
from tests.support import evidence, registered, synthetic_images


def _client():
    return client.mlflow_client()


def _row(model: str, version: int) -> ModelVersion:
    with transaction() as session:
        row = session.get(ModelVersion, (model, version))
        session.expunge(row)
        return row


def test_a_version_is_registered_with_its_origin_and_its_metrics(trained):
    version = _client().get_model_version("moulds", "1")
    row = _row("moulds", 1)
    assert version.tags["nightscore.sha256"] == row.program_sha256
    assert version.tags["nightscore.gate"] == "passed"
    assert "Gate passed" in version.description
    run = _client().get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert re.fullmatch(r"moulds \d{4}-\d\d-\d\d \d\d:\d\d", run.info.run_name)
    experiment = _client().get_experiment(run.info.experiment_id)
    assert experiment.name == "moulds"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.params["architecture"] == "anomaly_segmenter"
    assert run.data.params["epochs"] == "2"
    assert run.data.params["code"]
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.name == "moulds"
    assert row.snapshot_uri.endswith(f"{entry.dataset.digest}.parquet")
    for metric in (
        "train_loss", "holdout_loss", "holdout_auroc", "learning_rate", "gradient_norm",
        "weight_norm", "images_per_second",
    ):  # fmt: skip
        assert len(_client().get_metric_history(version.run_id, metric)) >= 2
    assert 0 <= run.data.metrics["holdout_calibration_error"] <= 1


@pytest.mark.parametrize(
    ("model", "plots_of_task"),
    [
        ("moulds", {"rates_by_threshold", "score_histogram"}),
        ("shades", {"confusion_matrix", "per_class"}),
    ],
)
def test_a_version_has_plots(trained, model, plots_of_task):
    from PIL import Image

    version = _client().get_model_version(model, "1")
    plots = {file.path for file in _client().list_artifacts(version.run_id, "plots")}
    names = plots_of_task | {
        "training_curves", "weights_and_gradients", "reliability", "worst_predictions",
        "right_predictions",
    }  # fmt: skip
    assert plots == {f"plots/{name}.png" for name in names}
    for path in plots:
        with Image.open(_client().download_artifacts(version.run_id, path)) as picture:
            assert picture.format == "PNG"


def test_a_classifier_s_classes_are_in_a_table_and_on_its_page(trained):
    version = _client().get_model_version("shades", "1")
    path = _client().download_artifacts(version.run_id, "tables/per_class.csv")
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["dark", "light"]
    assert set(rows[0]) == {"class", "precision", "recall", "f1", "support"}
    assert "| class, held-out images | precision | recall | f1 | support |" in version.description
    assert version.tags["nightscore.gate_metric"] == "accuracy"
    assert "lowest recall" in version.tags["nightscore.gate_reason"]


def test_metrics_that_are_not_numbers_can_be_stored():
    holdout = {"n": 3, "accuracy": float("nan"), "per_class": {}}
    assessment = Assessment(holdout, {"auroc": None}, None, {})
    metrics = steps._flatten_metrics(assessment)
    assert metrics == {"n": 3, "accuracy": None, "test_auroc": None}


def test_the_logged_model_is_a_pt2_program_with_signature_input_example_and_metadata(trained):
    import mlflow

    for model, extra in (("moulds", "threshold"), ("shades", "classes")):
        info = mlflow.models.get_model_info(f"models:/{model}/1")
        assert info.metadata["task"] == configuration().model(model).task
        assert info.metadata[extra]
        assert info.signature.inputs.inputs[0].shape == (-1, 3, 16, 16)
        (program,) = mlflow.artifacts.list_artifacts(f"models:/{model}/1/data")
        assert program.path == "data/model.pt2"
        assert info.saved_input_example_info is not None
        names = [output.name for output in info.signature.outputs.inputs]
        detector = ["scores", "heatmaps", "novelties"]
        assert names == (detector if model == "moulds" else ["probabilities"])


def test_a_version_records_how_its_threshold_was_chosen_and_how_certain_it_is(trained):
    import mlflow

    metadata = mlflow.models.get_model_info("models:/moulds/1").metadata
    row = _row("moulds", 1)
    stored = row.threshold_detail
    assert stored == metadata["threshold"]
    assert row.novelty_threshold == metadata["novelty_threshold"]
    assert (stored["policy"], stored["asked"]) == ("midpoint", "midpoint")
    assert stored["value"] == row.threshold
    assert stored["low"] <= stored["value"] <= stored["high"]
    for rate in (stored["tpr"], stored["fpr"]):
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
    assert stored["tpr"]["value"] == row.metrics["tpr"]
    assert 1 - stored["fpr"]["value"] == pytest.approx(row.metrics["tnr"])
    with transaction() as session:
        rows = session.execute(
            sa.text(
                "SELECT * FROM reporting.model_versions"
                " WHERE version = 1 AND model IN ('moulds', 'shades') ORDER BY model"
            )
        ).mappings()
        moulds, shades = [dict(row) for row in rows]
    assert (moulds["threshold_policy"], moulds["threshold_detail"]) == ("midpoint", stored)
    of_detectors = ("threshold_policy", "threshold_detail", "novelty_threshold")
    assert [shades[column] for column in of_detectors] == [None] * 3
    text = _client().get_model_version("moulds", "1").description
    assert "| policy | midpoint |" in text
    assert f"| threshold | {stored['value']:.6f} | {stored['low']:.6f} to " in text
    assert f"{stored['fpr']['images']} normal" in text
    assert "95 %" not in _client().get_model_version("shades", "1").description


def test_a_classifier_can_be_loaded_and_used_with_mlflow_alone(trained):
    import mlflow
    import numpy as np

    model = mlflow.pyfunc.load_model("models:/shades/1")
    probabilities = model.predict(np.full((3, 3, 16, 16), 50, dtype=np.uint8))
    assert probabilities.shape == (3, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_champion_and_challenger_are_compared_on_the_same_images(trained, tmp_path, monkeypatch):
    before = versions.version_of_alias("moulds", "champion")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        result = steps.retrain("moulds")
    assert list(tmp_path.rglob("*")) == [], "temporary files are left"
    row = _row("moulds", result["version"])
    assert f"version {before} has" in row.gate_reason
    assert versions.version_of_alias("moulds", "challenger") == result["version"]
    # The same snapshot, seed and code: the same weights, so it is not worse.
    assert _row("moulds", result["version"]).metrics["auroc"] == pytest.approx(
        _row("moulds", 1).metrics["auroc"]
    )
    assert result["promoted"]
    assert (row.gate["difference"], row.gate["lower"]) == (0, 0)
    version = _client().get_model_version("moulds", str(result["version"]))
    assert version.tags["nightscore.gate_difference"] == "0"
    assert version.tags["nightscore.gate_lower_bound"] == "0"
    assert f"auroc less that of version {before}, lower bound" in version.description
    assert "They judge 0 of" in version.description
    plots = {file.path for file in _client().list_artifacts(version.run_id, "plots")}
    assert "plots/disagreements.png" not in plots
    assert versions.version_of_alias("moulds", "previous") == before
    promotion.rollback("moulds", reason="test", by="test")
    assert versions.version_of_alias("moulds", "champion") == before


def test_a_challenger_that_may_be_worse_is_compared_in_numbers_and_plots(
    trained, monkeypatch, tmp_path
):
    before = versions.version_of_alias("shades", "champion")
    # With so few steps, at such a learning rate, it learns almost nothing.
    text = Path(os.environ["NIGHTSCORE_CONFIG"]).read_text()
    text = text.replace("batch_size: 32, learning_rate: 0.1", "batch_size: 2, learning_rate: 1e-9")
    text = text.replace("epochs: 2", "epochs: 1").replace("minimum: 0.7", "minimum: 0")
    (tmp_path / "nightscore.yaml").write_text(text)
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(tmp_path / "nightscore.yaml"))
    result = steps.retrain("shades")
    assert not result["promoted"]
    with analyst_engine().connect() as connection:
        row = (
            connection.execute(
                sa.text(
                    "SELECT * FROM reporting.model_versions"
                    " WHERE model = 'shades' AND version = :version"
                ),
                {"version": result["version"]},
            )
            .mappings()
            .one()
        )
    assert row["gate_metric"] == "accuracy"
    assert row["gate_value"] == row["metrics"]["accuracy"]
    assert row["gate_difference"] == row["gate_value"] - row["gate_champion_value"] < 0
    assert row["gate_lower_bound"] <= row["gate_difference"]
    floor, recall, difference = row["gate_checks"]
    assert floor["passed"] and recall["passed"] and not difference["passed"]
    assert difference["value"] == row["gate_lower_bound"]
    assert difference["required"] == -0.05
    assert "may be worse by more than 0.05" in row["gate_reason"]
    version = _client().get_model_version("shades", str(result["version"]))
    assert float(version.tags["nightscore.gate_p_value"]) < 0.05
    assert f"| accuracy less that of version {before}, lower bound |" in version.description
    assert "McNemar" in version.description
    plots = {file.path for file in _client().list_artifacts(version.run_id, "plots")}
    assert "plots/disagreements.png" in plots


def test_the_machine_is_monitored_while_training(trained, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run_id = tracking.start_run("monitored", None, {})
    with tracking.log_system_metrics(run_id):
        evidence.wait_for(lambda: "system/cpu_utilization_percentage" in _metrics(run_id))
    # Its end does not wait for the next sample.
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "600")
    started = time.monotonic()
    with tracking.log_system_metrics(run_id):
        pass
    assert time.monotonic() - started < 300
    tracking.end_run(run_id)


def _metrics(run_id: str) -> dict[str, float]:
    return _client().get_run(run_id).data.metrics


def test_a_monitor_that_cannot_start_gives_a_warning(trained, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often")
    run_id = tracking.start_run("monitored", None, {})
    done = False
    with tracking.log_system_metrics(run_id):
        done = True
    tracking.end_run(run_id)
    assert done
    assert "The machine is not monitored" in caplog.text


def test_a_version_that_fails_the_gate_is_registered_with_the_reason_and_not_promoted(
    trained, monkeypatch, tmp_path
):
    text = Path(os.environ["NIGHTSCORE_CONFIG"]).read_text().replace("minimum: 0.5", "minimum: 1.5")
    (tmp_path / "nightscore.yaml").write_text(text)
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(tmp_path / "nightscore.yaml"))
    before = versions.version_of_alias("moulds", "champion")
    result = steps.retrain("moulds")
    assert not result["promoted"]
    assert versions.version_of_alias("moulds", "champion") == before
    assert versions.version_of_alias("moulds", "challenger") == result["version"]
    version = _client().get_model_version("moulds", str(result["version"]))
    assert "NOT passed, not promoted" in version.description
    assert "below the floor" in version.tags["nightscore.gate_reason"]
    assert not _row("moulds", result["version"]).gate_passed


@pytest.fixture(scope="module")
def gated_run(trained) -> Value:
    """A run that may be registered, with the idempotency key `attempt-1`."""
    value = steps.train(steps.snapshot("shades"), idempotency_key="attempt-1")
    return steps.gate(steps.evaluate(value))


def test_two_trainings_give_the_same_weights_to_the_bit(gated_run):
    """For a detector: test_reproduction.py, where only the test images differ."""
    first = _client().get_model_version("shades", "1").run_id
    one, other = (registered.tensors(run) for run in (first, gated_run["run_id"]))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    digests = {tracking.run_tags(run)[tracking.WEIGHTS_TAG] for run in (first, gated_run["run_id"])}
    assert len(digests) == 1


def test_a_version_is_never_without_its_tags(gated_run, monkeypatch):
    def fail(*_, **__):
        raise MlflowException("made to fail")

    with monkeypatch.context() as context:
        context.setattr(MlflowClient, "update_model_version", fail)
        with pytest.raises(ServiceError, match="made to fail"):
            steps.register(gated_run)
    version = _client().get_model_version("shades", str(versions.list_versions("shades")[-1]))
    assert version.run_id == gated_run["run_id"]
    assert {"nightscore.sha256", "nightscore.gate", "nightscore.gate_reason"} <= set(version.tags)
    assert not version.description
    assert steps.register(gated_run)["version"] == int(version.version)
    assert _client().get_model_version("shades", version.version).description


def test_a_retried_step_registers_and_trains_once(gated_run):
    retried = steps.train(steps.snapshot("shades"), idempotency_key="attempt-1")
    assert retried["run_id"] == gated_run["run_id"]
    first = steps.register(gated_run)
    assert steps.register(gated_run) == first
    before = len(versions.list_versions("shades"))
    steps.promote(first)
    assert steps.promote(first)["changed"] is False
    assert len(versions.list_versions("shades")) == before


def test_a_training_that_fails_marks_its_run_and_registers_nothing(trained, monkeypatch):
    before = versions.list_versions("shades")
    value = steps.snapshot("shades")
    from ml.training import loop

    def fail(*_, **__):
        raise DataError("made to fail")

    monkeypatch.setattr(loop, "fit", fail)
    with pytest.raises(DataError, match="made to fail"):
        steps.train(value, idempotency_key="fails")
    experiment = _client().get_experiment_by_name("shades")
    (run,) = _client().search_runs(
        [experiment.experiment_id], "tags.`nightscore.attempt` = 'fails'"
    )
    assert run.info.status == "FAILED"
    assert versions.list_versions("shades") == before


def test_missing_data_fail_before_any_training(trained, monkeypatch, tmp_path):
    text = (
        Path(os.environ["NIGHTSCORE_CONFIG"])
        .read_text()
        .replace("dataset: shades", "dataset: nowhere")
    )
    (tmp_path / "nightscore.yaml").write_text(text)
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(tmp_path / "nightscore.yaml"))
    with pytest.raises(DataError, match="no training images"):
        steps.snapshot("shades")


def test_an_image_that_changed_since_the_snapshot_stops_the_training(trained):
    uri = f"{trained}/datasets/shades/train/dark/0001.png"
    content, _ = object_store().get(uri)
    value = steps.snapshot("shades")
    # A snapshot must not use the cached pixels of another one.
    object_store().put(uri, synthetic_images.shade("dark", 123_456))
    try:
        changed = steps.snapshot("shades")
        assert changed != value
        object_store().put(uri, content)
        with pytest.raises(DataError, match="was changed since the snapshot"):
            steps.train(changed)
    finally:
        object_store().put(uri, content)


def test_promotions_at_the_same_time_leave_one_champion_and_a_complete_audit(trained):
    candidates = [promotion.champion("shades"), registered.other_than_champion("shades")]
    with transaction() as session:
        before = session.scalar(sa.select(sa.func.count()).select_from(Promotion))
    changed: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda v=version: changed.append(
                promotion.promote("shades", v, reason="race", by="test").changed
            )
        )
        for version in candidates * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    champion = versions.version_of_alias("shades", "champion")
    assert champion in candidates
    with transaction() as session:
        aliases = session.execute(
            sa.text("SELECT alias, version FROM nightscore.model_alias WHERE model = 'shades'")
        ).all()
        after = session.scalar(sa.select(sa.func.count()).select_from(Promotion))
    assert dict(map(tuple, aliases))["champion"] == champion
    assert after - before == sum(changed)
    # Other tests score with the version that the fixture trained.
    promotion.promote("shades", 1, reason="test", by="test")


def test_promoting_an_unknown_version_lists_the_known_ones(trained):
    with pytest.raises(DataError, match="has no version 99") as raised:
        promotion.promote("shades", 99, reason="", by="test")
    assert "Registered versions: 1" in raised.value.hint
    with pytest.raises(DataError, match="no previous champion"):
        promotion.rollback("unknown-model", reason="", by="test")
