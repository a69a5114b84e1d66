"""The part of a task's arguments that says where it runs: queue, pool, priority, executor and pod.

They come from the section `resources` of `nightscore.yaml`. A pod is described only where one of
Airflow's executors starts pods, so that other installations parse the DAG files without the library
of Kubernetes.
"""

import re
from functools import cache
from typing import Any

from airflow.sdk.configuration import conf

from ml.config.resources import TaskKind, TaskResources

# Which task gets a slot of the pool first: the scoring of a night before all others, then the
# evaluation of a trained version, then training. By Airflow's own rule, a task with more tasks
# after it would go first.
_PRIORITIES = {"score": 3, "evaluate": 2, "train": 1}


def task_arguments(kind: TaskKind, resources: TaskResources) -> dict[str, Any]:
    """Return the arguments of a task that say where it runs.

    Args:
        kind: what the task does; it sets the priority.
        resources: what it runs with.
    """
    arguments: dict[str, Any] = {"queue": resources.queue, "pool": resources.pool}
    if kind in _PRIORITIES:
        arguments |= {"priority_weight": _PRIORITIES[kind], "weight_rule": "absolute"}
    if resources.executor is not None:
        arguments["executor"] = resources.executor
    if starts_pods(conf.get("core", "executor")) and (pod := _pod_override(resources)) is not None:
        arguments["executor_config"] = {"pod_override": pod}
    return arguments


@cache
def starts_pods(executors: str) -> bool:
    """Return whether one of Airflow's executors starts pods.

    Args:
        executors: the option `executor` of Airflow's section `core`: names, classes and
            ALIAS:CLASS, separated by commas; those of a team follow a semicolon and TEAM=.
    """
    classes = (part.rsplit(":", 1)[-1].strip() for part in re.split("[,;=]", executors))
    return any("kubernetes" in name.lower() for name in classes)


def _pod_override(resources: TaskResources) -> Any:
    """Return the `V1Pod` that is merged over the pod template; None if there is nothing to say.

    What a pod asks for is also its limit. So CPU and memory are those that the scheduler counted
    on, and the threads follow the quota (`ml.cores`).
    """
    from kubernetes.client import models as k8s

    amounts = {"cpu": resources.cpu, "memory": resources.memory}
    if resources.gpu:
        amounts[resources.gpu_resource] = str(resources.gpu)
    amounts = {name: amount for name, amount in amounts.items() if amount is not None}
    if not (amounts or resources.image or resources.node_selector or resources.tolerations):
        return None
    required = k8s.V1ResourceRequirements(requests=amounts, limits=amounts) if amounts else None
    container = k8s.V1Container(name="base", image=resources.image, resources=required)
    tolerations = [k8s.V1Toleration(**taint.model_dump()) for taint in resources.tolerations]
    return k8s.V1Pod(
        spec=k8s.V1PodSpec(
            containers=[container],
            node_selector=resources.node_selector or None,
            tolerations=tolerations or None,
        )
    )
