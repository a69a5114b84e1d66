"""A DAG `retrain_<model>` for each model of nightscore.yaml.

snapshot → train → evaluate → gate → register → promote
"""

from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException
from nightscore_connections import export_connections
from nightscore_links import VersionLink
from nightscore_resources import task_arguments
from nightscore_wiring import RETRIES, champion_asset, nightly

from ml.config.loading import configuration
from ml.config.schema import Model
from ml.cores import limit_library_threads


def _steps() -> Any:
    """`ml.retrain.steps`, which is imported when a task runs, not when this file is parsed."""
    limit_library_threads()
    export_connections()
    from ml.retrain import steps

    return steps


def retrain_dag(name: str, model: Model) -> Any:
    """The DAG of a model.

    Args:
        name: the name of the model.
        model: its configuration.
    """
    resources = configuration().resources
    other = task_arguments("retrain", resources.of("retrain", model.resources))

    @dag(
        dag_id=f"retrain_{name}",
        description=f"Train {name} ({model.task}) on {model.dataset}; promote it if it passes",
        schedule=nightly(model.schedule),
        catchup=False,
        max_active_runs=1,
        default_args=RETRIES,
        tags=["nightscore", "retrain", model.task],
        doc_md=__doc__,
    )
    def retrain() -> None:
        @task(**other)
        def snapshot() -> dict[str, Any]:
            return _steps().snapshot(name)

        @task(**task_arguments("train", resources.of("train", model.resources)))
        def train(taken_snapshot: dict[str, Any], run_id: str | None = None) -> dict[str, Any]:
            return _steps().train(taken_snapshot, idempotency_key=run_id)

        @task(**task_arguments("evaluate", resources.of("evaluate", model.resources)))
        def evaluate(trained_run: dict[str, Any]) -> dict[str, Any]:
            return _steps().evaluate(trained_run)

        @task(**other)
        def gate(trained_run: dict[str, Any]) -> dict[str, Any]:
            return _steps().gate(trained_run)

        @task(**other)
        def register(gated_run: dict[str, Any]) -> dict[str, Any]:
            return _steps().register(gated_run)

        @task(**other, outlets=[champion_asset(name)])
        def promote(version: dict[str, Any]) -> dict[str, Any]:
            if not version["passed"]:
                raise AirflowSkipException(
                    f"Version {version['version']} did not pass the gate and stays challenger."
                )
            return _steps().promote(version)

        version = register(gate(evaluate(train(snapshot()))))
        version.operator.operator_extra_links = (VersionLink(),)
        promote(version)

    return retrain()


for _name, _model in configuration().models.items():
    retrain_dag(_name, _model)
