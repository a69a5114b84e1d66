"""The steps of the DAGs, one command each: `nightscore step ...`.

Every command prints the JSON value that the next step takes. So a flow can be run, or resumed in
the middle, from a shell.
"""

import json
from typing import Annotated, Any
from uuid import UUID

import typer

from ml.cli.console import parse_date, print_json
from ml.errors import DataError

app = typer.Typer()
step = typer.Typer(
    help="Run one step of a DAG; prints the value that the next step takes.", no_args_is_help=True
)
app.add_typer(step, name="step")

Value = Annotated[str, typer.Argument(help="The JSON value that the step before printed.")]
RunId = Annotated[UUID, typer.Argument(help="The run id that open-run printed.")]


def _parse_value(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise DataError(f"{text!r} is not JSON.", "Pass what the step before printed.") from None
    if not isinstance(value, dict):
        raise DataError(f"{text!r} is not a JSON object.", "Pass what the step before printed.")
    return value


@step.command()
def snapshot(model: Annotated[str, typer.Argument(help="A model of nightscore.yaml.")]) -> None:
    """Retrain 1: take a snapshot of the model's data set."""
    from ml.retrain import steps

    print_json(steps.snapshot(model))


@step.command()
def train(value: Value) -> None:
    """Retrain 2: train on a snapshot and log the program to MLflow."""
    from ml.retrain import steps

    print_json(steps.train(_parse_value(value)))


@step.command()
def evaluate(value: Value) -> None:
    """Retrain 3: evaluate challenger and champion on the same held-out images."""
    from ml.retrain import steps

    print_json(steps.evaluate(_parse_value(value)))


@step.command()
def gate(value: Value) -> None:
    """Retrain 4: decide whether the challenger may be promoted."""
    from ml.retrain import steps

    print_json(steps.gate(_parse_value(value)))


@step.command()
def register(value: Value) -> None:
    """Retrain 5: register the version as challenger."""
    from ml.retrain import steps

    print_json(steps.register(_parse_value(value)))


@step.command()
def promote(value: Value) -> None:
    """Retrain 6: make the version champion."""
    from ml.retrain import steps

    print_json(steps.promote(_parse_value(value)))


@step.command()
def open_run(
    stream: Annotated[str, typer.Argument(help="A stream of nightscore.yaml.")],
    date: Annotated[
        str, typer.Option("--date", help="The night: YYYY-MM-DD, today or yesterday (UTC).")
    ],
    trigger: Annotated[
        str | None, typer.Option(help="Opening again for the same trigger returns the same run.")
    ] = None,
) -> None:
    """Score 1: open a run and pin the versions; prints the run id."""
    from ml.scoring import runs

    typer.echo(runs.open_run(stream, parse_date(date), trigger))


@step.command()
def discover(run_id: RunId) -> None:
    """Score 2: write the run's manifest; prints the number of new images."""
    from ml.scoring import discovery

    print_json(discovery.discover(run_id))


@step.command()
def plan_shards(run_id: RunId) -> None:
    """Score 3: print the numbers of the shards that are to be scored."""
    from ml.scoring import discovery

    print_json(discovery.plan_shards(run_id))


@step.command()
def plan_groups(run_id: RunId) -> None:
    """Score 3: print the same numbers in groups, one for each task of the DAG."""
    from ml.scoring import groups

    print_json(groups.plan_groups(run_id))


@step.command()
def score_shard(
    run_id: RunId, number: Annotated[int, typer.Argument(metavar="SHARD", help="Its number.")]
) -> None:
    """Score 4: score one shard and store its results."""
    from ml.scoring import shard

    print_json(shard.score_shard(run_id, number))


@step.command()
def score_shards(
    run_id: RunId,
    numbers: Annotated[list[int], typer.Argument(metavar="SHARD...", help="Their numbers.")],
) -> None:
    """Score 4: score several shards one after the other, with the programs loaded once."""
    from ml.scoring import shards

    print_json(shards.score_shards(run_id, numbers))


@step.command()
def reconcile(run_id: RunId) -> None:
    """Score 5: check that every image is scored or rejected, and close the run."""
    from ml.scoring import reconciliation

    print_json(reconciliation.reconcile(run_id))


@step.command()
def report(run_id: RunId) -> None:
    """Score 6: write the run's report; prints its URI."""
    from ml.report import nightly

    typer.echo(nightly.write(run_id))
