"""The steps of the DAGs, one command each: `nightscore step ...`.

Every command prints the JSON value that the next step takes, so a flow can be run, or taken up
half-way, from a shell.
"""

import json as jsonlib
from typing import Annotated, Any

import typer

from ml.cli.console import parse_date, print_json
from ml.errors import DataError

app = typer.Typer()
step = typer.Typer(
    help="Run one step of a DAG; prints the value that the next step takes.", no_args_is_help=True
)
app.add_typer(step, name="step")

Value = Annotated[str, typer.Argument(help="The JSON value that the step before printed.")]
RunId = Annotated[str, typer.Argument(help="The run id that open-run printed.")]


def _parsed(value: str) -> dict[str, Any]:
    try:
        parsed = jsonlib.loads(value)
    except ValueError:
        raise DataError(f"{value!r} is not JSON.", "Pass what the step before printed.") from None
    if not isinstance(parsed, dict):
        raise DataError(f"{value!r} is not a JSON object.", "Pass what the step before printed.")
    return parsed


@step.command()
def snapshot(model: Annotated[str, typer.Argument(help="A model of nightscore.yaml.")]) -> None:
    """Retrain 1: take a snapshot of the model's data set."""
    from ml.retrain import steps as retrain

    print_json(retrain.snapshot(model))


@step.command()
def train(value: Value) -> None:
    """Retrain 2: train on a snapshot and log the program to MLflow."""
    from ml.retrain import steps as retrain

    print_json(retrain.train(_parsed(value)))


@step.command()
def evaluate(value: Value) -> None:
    """Retrain 3: evaluate challenger and champion on the same held-out images."""
    from ml.retrain import steps as retrain

    print_json(retrain.evaluate(_parsed(value)))


@step.command()
def gate(value: Value) -> None:
    """Retrain 4: decide whether the challenger may be promoted."""
    from ml.retrain import steps as retrain

    print_json(retrain.gate(_parsed(value)))


@step.command()
def register(value: Value) -> None:
    """Retrain 5: register the version as challenger."""
    from ml.retrain import steps as retrain

    print_json(retrain.register(_parsed(value)))


@step.command()
def promote(value: Value) -> None:
    """Retrain 6: make the version champion."""
    from ml.retrain import steps as retrain

    print_json(retrain.promote(_parsed(value)))


@step.command()
def open_run(
    stream: Annotated[str, typer.Argument(help="A stream of nightscore.yaml.")],
    date: Annotated[str, typer.Option("--date", help="The night: YYYY-MM-DD, today or yesterday.")],
    trigger: Annotated[
        str | None, typer.Option(help="Opening again for the same trigger returns the same run.")
    ] = None,
) -> None:
    """Score 1: open a run and pin the versions; prints the run id."""
    from ml.scoring import steps

    typer.echo(steps.open_run(stream, parse_date(date).isoformat(), trigger))


@step.command()
def discover(run_id: RunId) -> None:
    """Score 2: write the run's manifest; prints the number of new images."""
    from ml.scoring import steps

    print_json(steps.discover(run_id))


@step.command()
def plan_shards(run_id: RunId) -> None:
    """Score 3: print the numbers of the shards that are to be scored."""
    from ml.scoring import steps

    print_json(steps.plan_shards(run_id))


@step.command()
def score_shard(run_id: RunId, shard: Annotated[int, typer.Argument(help="Its number.")]) -> None:
    """Score 4: score one shard and store its results."""
    from ml.scoring import steps

    print_json(steps.score_shard(run_id, shard))


@step.command()
def reconcile(run_id: RunId) -> None:
    """Score 5: check that every image is scored or rejected, and close the run."""
    from ml.scoring import steps

    print_json(steps.reconcile(run_id))


@step.command()
def report(run_id: RunId) -> None:
    """Score 6: write the run's report; prints its URI."""
    from ml.scoring import steps

    typer.echo(steps.report(run_id))
