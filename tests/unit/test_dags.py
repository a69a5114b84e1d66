"""The DAG files: what they define, and that parsing them loads nothing heavy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
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
heavy = {"torch", "torchvision", "mlflow", "boto3", "sqlalchemy", "obstore", "numpy", "PIL"}
print(json.dumps({
    "imported": sorted(heavy & set(sys.modules)),
    "dags": {
        name: {
            "tasks": {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks},
            "pools": {task.task_id: task.pool for task in dag.tasks},
        }
        for name, dag in dags.items()
    },
}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    environment = os.environ | {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    found = {}
    for file in FILES:
        done = subprocess.run(
            [sys.executable, "-c", PARSE, f"dags/{file}"],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found[file] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_parsing_imports_nothing_heavy(parsed):
    baseline = subprocess.run(
        [sys.executable, "-c", "import airflow.sdk, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for file in FILES:
        added = set(parsed[file]["imported"]) - set(baseline)
        assert not added & {"torch", "torchvision", "mlflow", "boto3", "numpy", "obstore", "PIL"}


def test_there_is_a_dag_for_each_model_and_stream(parsed):
    assert set(parsed["retrain.py"]["dags"]) == {
        "retrain_cifar10-classifier",
        "retrain_spill-anomaly",
    }
    assert set(parsed["score.py"]["dags"]) == {"score_cifar10", "score_spill"}


def test_the_scoring_steps_follow_the_design_and_the_gpu_is_pooled(parsed):
    dag = parsed["score.py"]["dags"]["score_spill"]
    assert dag["tasks"]["score_shard"] == ["reconcile"]
    assert dag["tasks"]["reconcile"] == ["report"]
    assert dag["tasks"]["discover"] == ["plan_shards"]
    assert {"discover", "plan_shards"} <= set(dag["tasks"]["open_run"])
    assert dag["pools"]["score_shard"] == "gpu"


def test_ml_never_imports_airflow():
    for path in (REPOSITORY / "ml").rglob("*.py"):
        text = path.read_text()
        assert "import airflow" not in text and "from airflow" not in text, path
