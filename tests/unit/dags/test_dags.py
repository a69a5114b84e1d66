"""The DAG files: what they define, and that parsing them loads nothing heavy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
FILES = ("maintain.py", "retrain.py", "score.py")

HEAVY = {"torch", "torchvision", "mlflow", "boto3", "numpy", "obstore", "PIL", "kubernetes"}

# One process answers for all files, as Airflow's DAG processor does.
PARSE = """
import importlib.util, json, sys
import airflow.sdk
from airflow.sdk.definitions._internal.contextmanager import DagContext
before = set(sys.modules)
sys.path[:0] = ["dags", "plugins"]

def parse(file):
    DagContext.autoregistered_dags.clear()
    DagContext.current_autoregister_module_name = "parsed"
    spec = importlib.util.spec_from_file_location("parsed", f"dags/{file}")
    sys.modules["parsed"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {dag.dag_id: summary(dag) for dag, _ in DagContext.autoregistered_dags}

def summary(dag):
    return {
        "tasks": {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks},
        "pools": {task.task_id: task.pool for task in dag.tasks},
        "queues": {task.task_id: task.queue for task in dag.tasks},
        "priorities": {
            task.task_id: [task.priority_weight, task.weight_rule]
            for task in dag.tasks
            if task.pool == "gpu"
        },
    }

dags = {file: parse(file) for file in sys.argv[1:]}
print(json.dumps({"dags": dags, "imported": sorted(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *FILES],
        cwd=REPOSITORY,
        env=os.environ | {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def parsed(printed):
    """File → DAG id → what the file defines."""
    return printed["dags"]


def test_parsing_imports_nothing_heavy(printed):
    assert "nightscore_wiring" in printed["imported"]
    assert not HEAVY & set(printed["imported"])


def test_there_is_a_dag_for_each_model_and_stream(parsed):
    assert set(parsed["retrain.py"]) == {
        "retrain_cifar10-classifier",
        "retrain_spill-anomaly",
    }
    assert set(parsed["score.py"]) == {"score_cifar10", "score_spill"}


def test_the_scoring_steps_follow_the_design_and_the_gpu_is_pooled(parsed):
    dag = parsed["score.py"]["score_spill"]
    assert dag["tasks"]["score_shards"] == ["reconcile"]
    assert dag["tasks"]["reconcile"] == ["report"]
    assert dag["tasks"]["discover"] == ["plan_shards"]
    assert {"discover", "plan_shards"} <= set(dag["tasks"]["open_run"])
    assert dag["pools"]["score_shards"] == "gpu"


def test_maintenance_deletes_in_the_database_first_and_looks_at_every_failure(parsed):
    assert set(parsed["maintain.py"]) == {"maintain"}
    assert parsed["maintain.py"]["maintain"]["tasks"] == {
        "make_partitions": ["prune_database"],
        "prune_database": ["analyse", "prune_objects"],
        "prune_objects": ["analyse", "prune_registry"],
        "prune_registry": ["analyse"],
        "analyse": [],
    }


def test_a_night_goes_before_training_and_a_trained_version_before_another_training(parsed):
    retrain = parsed["retrain.py"]["retrain_spill-anomaly"]["priorities"]
    score = parsed["score.py"]["score_spill"]["priorities"]
    weights = {name: weight for name, (weight, _) in {**retrain, **score}.items()}
    assert sorted(weights, key=weights.__getitem__) == ["train", "evaluate", "score_shards"]
    assert {rule for _, rule in {**retrain, **score}.values()} == {"absolute"}


def test_every_task_has_a_queue_and_a_pool(parsed):
    computing = {"score_shards", "train", "evaluate"}
    for file in FILES:
        for dag in parsed[file].values():
            for task, pool in dag["pools"].items():
                expected = ("gpu", "gpu") if task in computing else ("default", "default_pool")
                assert (dag["queues"][task], pool) == expected, task
