"""The retrain flow on real MLflow, S3 and Postgres."""

import csv
import os
import re
import tempfile
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ml.config.loading import configuration
from ml.database.connection import analyst_engine, transaction
from ml.database.tables import ModelVersion, Promotion
from ml.errors import DataError, ServiceError
from ml.registry import client, promotion, tracking
from ml.registry import versions as registry
from ml.retrain import steps as retrain
from ml.storage.object_store import object_store
from tests.support import drawing, evidence
from tests.support.registered import other_than_champion


def _client():
    return client.mlflow_client()


def _row(model: str, version: int) -> ModelVersion:
    with transaction() as session:
        row = session.get(ModelVersion, (model, version))
        session.expunge(row)
        return row


def test_a_version_is_registered_with_everything_that_is_needed_to_trust_it(trained):
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
    ("model", "own"),
    [
        ("moulds", {"rates_by_threshold", "score_histogram"}),
        ("shades", {"confusion_matrix", "per_class"}),
    ],
)
def test_a_version_is_shown_in_pictures(trained, model, own):
    from PIL import Image

    version = _client().get_model_version(model, "1")
    plots = {found.path for found in _client().list_artifacts(version.run_id, "plots")}
    names = own | {
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


def test_metrics_that_are_no_numbers_can_be_stored():
    found = {
        "holdout": {"n": 3, "accuracy": float("nan"), "per_class": {}},
        "test": {"auroc": None},
    }
    assert retrain._flat(found) == {"n": 3, "accuracy": None, "test_auroc": None}


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
        names = [found.name for found in info.signature.outputs.inputs]
        wanted = ["scores", "heatmaps", "novelties"] if model == "moulds" else ["probabilities"]
        assert names == wanted


def test_a_version_says_how_its_threshold_was_chosen_and_how_sure_it_is(trained):
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
        found = session.execute(
            sa.text(
                "SELECT * FROM reporting.model_versions"
                " WHERE version = 1 AND model IN ('moulds', 'shades') ORDER BY model"
            )
        ).mappings()
        moulds, shades = [dict(version) for version in found]
    assert (moulds["threshold_policy"], moulds["threshold_detail"]) == ("midpoint", stored)
    nothing = ("threshold_policy", "threshold_detail", "novelty_threshold")
    assert [shades[column] for column in nothing] == [None] * 3
    text = _client().get_model_version("moulds", "1").description
    assert "| policy | midpoint |" in text
    assert f"| threshold | {stored['value']:.6f} | {stored['low']:.6f} to " in text
    assert f"{stored['fpr']['images']} normal" in text
    assert "95 %" not in _client().get_model_version("shades", "1").description


def test_a_classifier_can_be_loaded_and_used_with_mlflow_alone(trained):
    import mlflow
    import numpy as np

    model = mlflow.pyfunc.load_model("models:/shades/1")
    found = model.predict(np.full((3, 3, 16, 16), 50, dtype=np.uint8))
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_champion_and_challenger_are_compared_on_the_same_images(trained, tmp_path, monkeypatch):
    before = registry.version_of_alias("moulds", "champion")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        result = retrain.retrain("moulds")
    assert list(tmp_path.rglob("*")) == [], "temporary files are left"
    row = _row("moulds", result["version"])
    assert f"version {before} has" in row.gate_reason
    assert registry.version_of_alias("moulds", "challenger") == result["version"]
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
    plots = {found.path for found in _client().list_artifacts(version.run_id, "plots")}
    assert "plots/disagreements.png" not in plots
    assert registry.version_of_alias("moulds", "previous") == before
    promotion.rollback("moulds", reason="test", by="test")
    assert registry.version_of_alias("moulds", "champion") == before


def test_a_challenger_that_may_be_worse_is_compared_in_numbers_and_pictures(
    trained, monkeypatch, tmp_path
):
    before = registry.version_of_alias("shades", "champion")
    # So little training, at such a rate, learns next to nothing.
    text = Path(os.environ["NIGHTSCORE_CONFIG"]).read_text()
    text = text.replace("batch_size: 32, learning_rate: 0.1", "batch_size: 2, learning_rate: 1e-9")
    text = text.replace("epochs: 2", "epochs: 1").replace("minimum: 0.7", "minimum: 0")
    (tmp_path / "nightscore.yaml").write_text(text)
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(tmp_path / "nightscore.yaml"))
    result = retrain.retrain("shades")
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
    floor, recall, against = row["gate_checks"]
    assert floor["passed"] and recall["passed"] and not against["passed"]
    assert against["value"] == row["gate_lower_bound"]
    assert against["required"] == -0.05
    assert "may be worse by more than 0.05" in row["gate_reason"]
    version = _client().get_model_version("shades", str(result["version"]))
    assert float(version.tags["nightscore.gate_p_value"]) < 0.05
    assert f"| accuracy less that of version {before}, lower bound |" in version.description
    assert "McNemar" in version.description
    plots = {found.path for found in _client().list_artifacts(version.run_id, "plots")}
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


def test_a_monitor_that_cannot_start_is_warned_of(trained, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often")
    run_id = tracking.start_run("monitored", None, {})
    done = False
    with tracking.log_system_metrics(run_id):
        done = True
    tracking.end_run(run_id)
    assert done
    assert "The machine is not monitored" in caplog.text


def test_what_fails_the_gate_is_registered_not_promoted_and_says_why(
    trained, monkeypatch, tmp_path
):
    text = Path(os.environ["NIGHTSCORE_CONFIG"]).read_text().replace("minimum: 0.5", "minimum: 1.5")
    (tmp_path / "nightscore.yaml").write_text(text)
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(tmp_path / "nightscore.yaml"))
    before = registry.version_of_alias("moulds", "champion")
    result = retrain.retrain("moulds")
    assert not result["promoted"]
    assert registry.version_of_alias("moulds", "champion") == before
    assert registry.version_of_alias("moulds", "challenger") == result["version"]
    version = _client().get_model_version("moulds", str(result["version"]))
    assert "NOT passed, not promoted" in version.description
    assert "below the floor" in version.tags["nightscore.gate_reason"]
    assert not _row("moulds", result["version"]).gate_passed


@pytest.fixture(scope="module")
def decided(trained) -> retrain.Value:
    """A run that may be registered, of the attempt `attempt-1`."""
    value = retrain.train(retrain.snapshot("shades"), attempt_key="attempt-1")
    return retrain.gate(retrain.evaluate(value))


def test_a_version_is_never_without_its_tags(decided, monkeypatch):
    def fails(*_, **__):
        raise MlflowException("made to fail")

    with monkeypatch.context() as context:
        context.setattr(MlflowClient, "update_model_version", fails)
        with pytest.raises(ServiceError, match="made to fail"):
            retrain.register(decided)
    version = _client().get_model_version("shades", str(registry.list_versions("shades")[-1]))
    assert version.run_id == decided["run_id"]
    assert {"nightscore.sha256", "nightscore.gate", "nightscore.gate_reason"} <= set(version.tags)
    assert not version.description
    assert retrain.register(decided)["version"] == int(version.version)
    assert _client().get_model_version("shades", version.version).description


def test_a_retried_step_registers_and_trains_once(decided):
    again = retrain.train(retrain.snapshot("shades"), attempt_key="attempt-1")
    assert again["run_id"] == decided["run_id"]
    first = retrain.register(decided)
    assert retrain.register(decided) == first
    before = len(registry.list_versions("shades"))
    retrain.promote(first)
    assert retrain.promote(first)["changed"] is False
    assert len(registry.list_versions("shades")) == before


def test_a_training_that_fails_marks_its_run_and_registers_nothing(trained, monkeypatch):
    before = registry.list_versions("shades")
    value = retrain.snapshot("shades")
    from ml.training import loop

    def fails(*_, **__):
        raise DataError("made to fail")

    monkeypatch.setattr(loop, "fit", fails)
    with pytest.raises(DataError, match="made to fail"):
        retrain.train(value, attempt_key="fails")
    experiment = _client().get_experiment_by_name("shades")
    (run,) = _client().search_runs(
        [experiment.experiment_id], "tags.`nightscore.attempt` = 'fails'"
    )
    assert run.info.status == "FAILED"
    assert registry.list_versions("shades") == before


def test_missing_data_fail_before_any_training(trained, monkeypatch, tmp_path):
    text = (
        Path(os.environ["NIGHTSCORE_CONFIG"])
        .read_text()
        .replace("dataset: shades", "dataset: nowhere")
    )
    (tmp_path / "nightscore.yaml").write_text(text)
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(tmp_path / "nightscore.yaml"))
    with pytest.raises(DataError, match="no training images"):
        retrain.snapshot("shades")


def test_an_image_that_changed_since_the_snapshot_stops_the_training(trained):
    uri = f"{trained}/datasets/shades/train/dark/0001.png"
    content, _ = object_store().get(uri)
    value = retrain.snapshot("shades")
    # Only the snapshot's own pixels may be cached; a new snapshot reads again.
    object_store().put(uri, drawing.shade("dark", 123_456))
    try:
        changed = retrain.snapshot("shades")
        assert changed != value
        object_store().put(uri, content)
        with pytest.raises(DataError, match="was changed since the snapshot"):
            retrain.train(changed)
    finally:
        object_store().put(uri, content)


def test_promotions_at_the_same_time_leave_one_champion_and_a_complete_audit(trained):
    versions = [promotion.champion("shades"), other_than_champion("shades")]
    with transaction() as session:
        before = session.scalar(sa.select(sa.func.count()).select_from(Promotion))
    changed: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda v=version: changed.append(
                promotion.promote("shades", v, reason="race", by="test").changed
            )
        )
        for version in versions * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    champion = registry.version_of_alias("shades", "champion")
    assert champion in versions
    with transaction() as session:
        mirrored = session.execute(
            sa.text("SELECT alias, version FROM nightscore.model_alias WHERE model = 'shades'")
        ).all()
        after = session.scalar(sa.select(sa.func.count()).select_from(Promotion))
    assert dict(map(tuple, mirrored))["champion"] == champion
    assert after - before == sum(changed)
    # Whoever won: other tests score with what the fixture trained.
    promotion.promote("shades", 1, reason="test", by="test")


def test_promoting_what_does_not_exist_lists_what_does(trained):
    with pytest.raises(DataError, match="has no version 99") as caught:
        promotion.promote("shades", 99, reason="", by="test")
    assert "Registered versions: 1" in caught.value.hint
    with pytest.raises(DataError, match="no previous champion"):
        promotion.rollback("unknown-model", reason="", by="test")
