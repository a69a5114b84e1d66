"""A DAG `score_<stream>` for each stream of nightscore.yaml.

open run (pin versions) → discover → plan shards → score shards (mapped over groups) → reconcile →
report

A stream with `rescore_nights` also has a DAG `rescore_<stream>`: a promotion of one of its models
starts the scoring of that many nights again.
"""

from datetime import date, timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import AssetAny, Param, TriggerRule, dag, task
from nightscore_connections import export_connections
from nightscore_links import ReportLink
from nightscore_resources import task_arguments
from nightscore_wiring import RETRIES, champion_asset, nightly

from ml.config.loading import configuration
from ml.config.schema import Stream
from ml.cores import limit_library_threads
from ml.errors import RunFailedError
from ml.scoring import SHARD_ATTEMPTS

# What Airflow shows instead of a mapped task's number, such as "shards 0 to 23".
_GROUP_NAME = (
    "{% set shards = task.op_kwargs['shards'] %}"
    "{% if shards | length == 1 %}shard {{ shards[0] }}"
    "{% else %}shards {{ shards[0] }} to {{ shards[-1] }}{% endif %}"
)


def _steps() -> Any:
    """`ml.scoring.steps`, imported when a task runs and not when this file is parsed."""
    limit_library_threads()
    export_connections()
    from ml.scoring import steps

    return steps


def score_dag(name: str, stream: Stream) -> Any:
    """Define the DAG that scores the nights of a stream."""
    resources = configuration().resources
    other = task_arguments("other", resources.of("other", stream.resources))

    @dag(
        dag_id=f"score_{name}",
        description=f"Score the new images of {stream.prefix} with {', '.join(stream.models)}",
        schedule=nightly(stream.schedule),
        catchup=False,
        max_active_runs=1,
        default_args=RETRIES,
        tags=["nightscore", "score"],
        doc_md=__doc__,
        params={
            "night": Param(
                None,
                type=["null", "string"],
                format="date",
                description="The night to score, YYYY-MM-DD; left empty, the run's logical date.",
            )
        },
    )
    def score() -> None:
        @task(**other)
        def open_run(params: dict[str, Any] | None = None, **context: Any) -> str:
            night = (params or {}).get("night") or _night_of(context["dag_run"])
            # One scoring run per DAG run, so that a cleared task finds the versions pinned before.
            trigger = f"{context['dag'].dag_id}/{context['run_id']}"
            return _steps().open_run(name, night, trigger=trigger)

        @task(**other)
        def discover(scoring_run: str) -> int:
            return _steps().discover(scoring_run)

        @task(**other)
        def plan_shards(scoring_run: str) -> list[list[int]]:
            return _steps().plan_groups(scoring_run)

        # A retry scores the shards of the group that are not finished. After the last attempt the
        # run fails and names their images.
        @task(
            **task_arguments("score", resources.of("score", stream.resources)),
            map_index_template=_GROUP_NAME,
            retries=SHARD_ATTEMPTS - 1,
        )
        def score_shards(scoring_run: str, shards: list[int]) -> dict[str, int]:
            return _steps().score_shards(scoring_run, shards)

        # Also runs after a failed shard: the results of the other shards are counted, and the run
        # is marked failed. And it runs when there was no shard to score.
        @task(**other, trigger_rule=TriggerRule.ALL_DONE)
        def reconcile(scoring_run: str | None) -> dict[str, Any]:
            return _steps().reconcile(_require_opened(scoring_run))

        # Also runs after a failed run, whose page says why. It then fails too, because the last
        # task decides whether the DAG run is red.
        @task(**other, trigger_rule=TriggerRule.ALL_DONE)
        def report(scoring_run: str | None) -> str:
            steps = _steps()
            run_id = _require_opened(scoring_run)
            uri = steps.report(run_id)
            steps.require_finished(run_id)
            return uri

        scoring_run = open_run()
        discovered = discover(scoring_run)
        groups = plan_shards(scoring_run)
        scored = score_shards.partial(scoring_run=scoring_run).expand(shards=groups)
        reconciled = reconcile(scoring_run)
        reported = report(scoring_run)
        reported.operator.operator_extra_links = (ReportLink(),)
        discovered >> groups
        scored >> reconciled >> reported

    return score()


def _require_opened(scoring_run: str | None) -> str:
    if scoring_run is None:
        raise RunFailedError("No scoring run was opened; the log of the task open_run says why.")
    return scoring_run


def _night_of(dag_run: Any) -> str:
    """The day of the logical date; a run triggered without one is for the current day (UTC)."""
    return (dag_run.logical_date or dag_run.run_after).date().isoformat()


def rescore_dag(name: str, stream: Stream) -> Any:
    """Define the DAG that scores the last nights of a stream again after a promotion."""
    other = task_arguments("other", configuration().resources.of("other", stream.resources))

    @dag(
        dag_id=f"rescore_{name}",
        description=f"After a promotion, score the last {stream.rescore_nights} nights again",
        schedule=AssetAny(*(champion_asset(model) for model in stream.models)),
        catchup=False,
        max_active_runs=1,
        default_args=RETRIES,
        tags=["nightscore", "score"],
    )
    def rescore() -> None:
        @task(**other)
        def nights(**context: Any) -> list[dict[str, str]]:
            last: date = context["dag_run"].run_after.date()
            return [
                {"night": (last - timedelta(days=days)).isoformat()}
                for days in range(stream.rescore_nights)
            ]

        TriggerDagRunOperator.partial(
            **other, task_id="score", trigger_dag_id=f"score_{name}", wait_for_completion=True
        ).expand(conf=nights())

    return rescore()


for _name, _stream in configuration().streams.items():
    score_dag(_name, _stream)
    if _stream.rescore_nights:
        rescore_dag(_name, _stream)
