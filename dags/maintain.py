"""A DAG `maintain`: what no night waits for.

make partitions → prune the database → prune objects → prune the registry → analyse

It deletes only kinds of things for which `retention` of nightscore.yaml sets a limit.
"""

from typing import Any

from airflow.sdk import TriggerRule, dag, task
from nightscore_connections import MAINTAINER, OF_TASKS, export_connections
from nightscore_resources import task_arguments
from nightscore_wiring import RETRIES, at

from ml.config.loading import configuration
from ml.config.resources import ModelResources, StreamResources
from ml.cores import limit_library_threads
from ml.errors import RunFailedError


def _steps() -> Any:
    """`ml.retention.steps`, imported when a task runs and not when this file is parsed."""
    limit_library_threads()
    export_connections((*OF_TASKS, MAINTAINER))
    from ml.retention import steps

    return steps


def maintain_dag() -> Any:
    """Define the DAG."""
    resources = configuration().resources
    other = task_arguments("other", resources.of("other", StreamResources()))
    # MLflow's library deletes versions.
    with_library = task_arguments("retrain", resources.of("retrain", ModelResources()))

    @dag(
        dag_id="maintain",
        description="Make partitions ahead, and delete what has passed its limit",
        schedule=at(configuration().retention.schedule),
        catchup=False,
        max_active_runs=1,
        default_args=RETRIES,
        tags=["nightscore", "maintain"],
        doc_md=__doc__,
    )
    def maintain() -> None:
        @task(**other)
        def make_partitions() -> list[str]:
            return _steps().make_partitions()

        @task(**other)
        def prune_database() -> dict[str, int]:
            return _steps().prune("database")

        # What lies elsewhere does not wait for a failure to be repaired.
        @task(**other, trigger_rule=TriggerRule.ALL_DONE)
        def prune_objects() -> dict[str, int]:
            return _steps().prune("objects")

        @task(**with_library, trigger_rule=TriggerRule.ALL_DONE)
        def prune_registry() -> dict[str, int]:
            return _steps().prune("registry")

        # The last task decides whether the DAG run is red, so it fails when one before has failed.
        @task(**other, trigger_rule=TriggerRule.ALL_DONE)
        def analyse(*deleted: dict[str, int] | None) -> bool:
            done = _steps().analyse()
            if None in deleted:
                raise RunFailedError("Something could not be deleted; its task says what and why.")
            return done

        made = make_partitions()
        database, objects, registry = prune_database(), prune_objects(), prune_registry()
        made >> database >> objects >> registry >> analyse(database, objects, registry)

    return maintain()


maintain_dag()
