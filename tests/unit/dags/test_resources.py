"""Where a task runs: what the configuration of Airflow and of Nightscore makes of its arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
EXECUTORS = {
    "LocalExecutor": False,
    "CeleryExecutor": False,
    "CeleryExecutor,company.executors.BatchExecutor": False,
    "KubernetesExecutor": True,
    "CeleryExecutor,KubernetesExecutor": True,
    "CeleryExecutor, pods:KubernetesExecutor": True,
    "LocalExecutor;press=CeleryExecutor,KubernetesExecutor": True,
    "airflow.providers.cncf.kubernetes.executors.kubernetes_executor.KubernetesExecutor": True,
    # An alias says nothing of what it names.
    "kubernetes:LocalExecutor": False,
}

ARGUMENTS = """
import json, sys
sys.path[:0] = ["dags"]
from nightscore_resources import starts_pods, task_arguments
from ml.config.resources import TaskResources
before = "kubernetes" in sys.modules
resources = TaskResources(queue="line", pool="gpu", executor="pods", gpu=1)
with_pod = task_arguments("score", resources)
print(json.dumps({
    "pods": {executors: starts_pods(executors) for executors in json.loads(sys.argv[1])},
    "imported": [before, "kubernetes" in sys.modules],
    "keys": sorted(with_pod),
    "executor": with_pod["executor"],
    "without": sorted(task_arguments("other", TaskResources(queue="q", pool="p"))),
}))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    variables = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [sys.executable, "-c", ARGUMENTS, json.dumps(list(EXECUTORS))],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_without_pods_a_task_has_its_queue_and_the_library_of_kubernetes_stays_out(printed):
    """With pods: tests/unit/docker/test_kubernetes.py."""
    assert printed["keys"] == ["executor", "pool", "priority_weight", "queue", "weight_rule"]
    assert printed["without"] == ["pool", "queue"]
    assert printed["executor"] == "pods"
    assert printed["imported"] == [False, False]


def test_executors_are_recognised_in_lists_with_aliases_and_teams(printed):
    assert printed["pods"] == EXECUTORS
