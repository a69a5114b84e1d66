"""The DAG files: what they define, and that parsing them loads nothing heavy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
FILES = ("retrain.py", "score.py")

PARSE = """
import importlib.util, json, sys
sys.path[:0] = ["dags", "plugins"]
spec = importlib.util.spec_from_file_location("parsed", sys.argv[1])
module = importlib.util.module_from_spec(spec)
from airflow.sdk.definitions._internal.contextmanager import DagContext
DagContext.current_autoregister_module_name = "parsed"
sys.modules["parsed"] = module
spec.loader.exec_module(module)
dags = {dag.dag_id: dag for dag, _ in DagContext.autoregistered_dags}
heavy = {"kubernetes", "torch", "torchvision", "mlflow", "boto3", "sqlalchemy", "obstore", "numpy", "PIL"}
print(json.dumps({
    "imported": sorted(heavy & set(sys.modules)),
    "dags": {
        name: {
            "tasks": {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks},
            "pools": {task.task_id: task.pool for task in dag.tasks},
            "queues": {task.task_id: task.queue for task in dag.tasks},
            "priorities": {
                task.task_id: [task.priority_weight, task.weight_rule]
                for task in dag.tasks
                if task.pool == "gpu"
            },
        }
        for name, dag in dags.items()
    },
}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    environment = os.environ | {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    summaries = {}
    for file in FILES:
        done = subprocess.run(
            [sys.executable, "-c", PARSE, f"dags/{file}"],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        summaries[file] = json.loads(done.stdout.splitlines()[-1])
    return summaries


def test_parsing_imports_nothing_heavy(parsed):
    baseline = subprocess.run(
        [sys.executable, "-c", "import airflow.sdk, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for file in FILES:
        added = set(parsed[file]["imported"]) - set(baseline)
        heavy = {"torch", "torchvision", "mlflow", "boto3", "numpy", "obstore", "PIL", "kubernetes"}
        assert not added & heavy


def test_there_is_a_dag_for_each_model_and_stream(parsed):
    assert set(parsed["retrain.py"]["dags"]) == {
        "retrain_cifar10-classifier",
        "retrain_spill-anomaly",
    }
    assert set(parsed["score.py"]["dags"]) == {"score_cifar10", "score_spill"}


def test_the_scoring_steps_follow_the_design_and_the_gpu_is_pooled(parsed):
    dag = parsed["score.py"]["dags"]["score_spill"]
    assert dag["tasks"]["score_shards"] == ["reconcile"]
    assert dag["tasks"]["reconcile"] == ["report"]
    assert dag["tasks"]["discover"] == ["plan_shards"]
    assert {"discover", "plan_shards"} <= set(dag["tasks"]["open_run"])
    assert dag["pools"]["score_shards"] == "gpu"


def test_a_night_goes_before_training_and_a_trained_version_before_another_training(parsed):
    retrain = parsed["retrain.py"]["dags"]["retrain_spill-anomaly"]["priorities"]
    score = parsed["score.py"]["dags"]["score_spill"]["priorities"]
    weights = {name: weight for name, (weight, _) in {**retrain, **score}.items()}
    assert sorted(weights, key=weights.__getitem__) == ["train", "evaluate", "score_shards"]
    assert {rule for _, rule in {**retrain, **score}.values()} == {"absolute"}


def test_every_task_has_a_queue_and_a_pool(parsed):
    computing = {"score_shards", "train", "evaluate"}
    for file in FILES:
        for dag in parsed[file]["dags"].values():
            for task, pool in dag["pools"].items():
                expected = ("gpu", "gpu") if task in computing else ("default", "default_pool")
                assert (dag["queues"][task], pool) == expected, task


EXPORT = """
import json, os, sys
sys.path[:0] = ["plugins"]
from nightscore_connections import export_connections
export_connections()
from ml.settings import Settings
settings = Settings(_env_file=None)
print(json.dumps([
    settings.database_url.get_secret_value(), settings.s3_endpoint, settings.s3_access_key,
    settings.s3_secret_key.get_secret_value(), settings.s3_region, settings.mlflow_uri,
    settings.mlflow_username,
]))
"""


def test_airflow_connections_serve_where_the_environment_says_nothing(tmp_path):
    s3 = {"conn_type": "aws", "login": "key", "password": "secret",
          "extra": {"endpoint_url": "http://s3:9000", "region_name": "eu-west-1"}}  # fmt: skip
    environment = os.environ | {
        "AIRFLOW_HOME": str(tmp_path),
        "NIGHTSCORE_HOME": str(tmp_path / "none"),
        "PYTHONPATH": str(REPOSITORY),
        "AIRFLOW_CONN_NIGHTSCORE_POSTGRES": "postgres://me:p%40ss@db:5433/scores",
        "AIRFLOW_CONN_NIGHTSCORE_S3": json.dumps(s3),
        "AIRFLOW_CONN_NIGHTSCORE_MLFLOW": "http://you:pw@ignored:5000",
        "MLFLOW_TRACKING_URI": "http://mlflow:1234",
    }
    done = subprocess.run(
        [sys.executable, "-c", EXPORT],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [
        "postgresql+psycopg2://me:p%40ss@db:5433/scores",
        "http://s3:9000", "key", "secret", "eu-west-1",
        "http://mlflow:1234", "",
    ]  # fmt: skip
