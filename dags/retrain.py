"""A DAG `retrain_<model>` for each model of nightscore.yaml.

snapshot → train → evaluate → gate → register → promote
"""

from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException
from nightscore_links import VersionLink
from nightscore_wiring import RETRIES, champion_asset, export_connections, gpu_slot, nightly

from ml.config.loading import configuration
from ml.config.schema import Model


def _steps() -> Any:
    """`ml.retrain.steps`, loaded when a task runs and not when this file is parsed."""
    export_connections()
    from ml.retrain import steps as retrain

    return retrain


def retrain_dag(name: str, model: Model) -> Any:
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
        @task
        def snapshot() -> dict[str, Any]:
            return _steps().snapshot(name)

        @task(**gpu_slot("train"))
        def train(taken: dict[str, Any], run_id: str | None = None) -> dict[str, Any]:
            return _steps().train(taken, attempt_key=run_id)

        @task(**gpu_slot("evaluate"))
        def evaluate(trained: dict[str, Any]) -> dict[str, Any]:
            return _steps().evaluate(trained)

        @task
        def gate(evaluated: dict[str, Any]) -> dict[str, Any]:
            return _steps().gate(evaluated)

        @task
        def register(decided: dict[str, Any]) -> dict[str, Any]:
            return _steps().register(decided)

        @task(outlets=[champion_asset(name)])
        def promote(registered: dict[str, Any]) -> dict[str, Any]:
            if not registered["passed"]:
                raise AirflowSkipException(
                    f"Version {registered['version']} did not pass the gate and stays challenger."
                )
            return _steps().promote(registered)

        registered = register(gate(evaluate(train(snapshot()))))
        registered.operator.operator_extra_links = (VersionLink(),)
        promote(registered)

    return retrain()


for _name, _model in configuration().models.items():
    retrain_dag(_name, _model)
