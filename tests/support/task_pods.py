"""The pods of tasks, as Airflow's KubernetesExecutor would make them from the DAG files.

`python -m tests.support.task_pods POD_TEMPLATE`, with the executor in the environment, prints a
JSON object: "DAG/TASK" → pod.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


def parse(file: str) -> dict[str, Any]:
    """The DAGs that a file of dags/ defines, by id."""
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    sys.path[:0] = [str(REPOSITORY / "dags"), str(REPOSITORY / "plugins")]
    spec = importlib.util.spec_from_file_location("parsed", REPOSITORY / "dags" / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    DagContext.autoregistered_dags.clear()
    DagContext.current_autoregister_module_name = "parsed"
    sys.modules["parsed"] = module
    spec.loader.exec_module(module)
    return {dag.dag_id: dag for dag, _ in DagContext.autoregistered_dags}


def through_the_database(dag: Any) -> dict[str, Any]:
    """The executor's configuration of each task, as it comes back from Airflow's database."""
    from airflow.serialization.serialized_objects import DagSerialization

    document = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    assert document == json.loads(json.dumps(DagSerialization.to_dict(dag))), "another DAG version"
    stored = DagSerialization.from_dict(document)
    return {task.task_id: _executor_config(task) for task in stored.tasks}


def _executor_config(task: Any) -> Any:
    return task.partial_kwargs.get("executor_config") if task.is_mapped else task.executor_config


def construct(template: str, dag: str, task: str, executor_config: Any) -> dict[str, Any]:
    """The pod of a task, made by the provider's own code from the template and the override."""
    from airflow.providers.cncf.kubernetes.kube_config import KubeConfig
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

    config = KubeConfig()
    pod = PodGenerator.construct_pod(
        dag_id=dag,
        task_id=task,
        pod_id="pod-of-a-task",
        try_number=1,
        kube_image=config.kube_image,
        date=None,
        args=["python", "-m", "airflow.sdk.execution_time.execute_workload", "--json-string", "{}"],
        pod_override_object=PodGenerator.from_obj(executor_config),
        base_worker_pod=PodGenerator.deserialize_model_file(template),
        namespace="nightscore",
        scheduler_job_id="1",
        run_id="run",
    )
    document: dict[str, Any] = PodGenerator.serialize_pod(pod)
    return document


def main() -> None:
    pods = {}
    for file in ("score.py", "retrain.py"):
        for dag_id, dag in parse(file).items():
            for task_id, executor_config in through_the_database(dag).items():
                pods[f"{dag_id}/{task_id}"] = construct(
                    sys.argv[1], dag_id, task_id, executor_config
                )
    print(json.dumps(pods))


if __name__ == "__main__":
    main()
