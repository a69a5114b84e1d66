"""The command `run`: the main job, end to end."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from ml.cli.console import Json, err, out, parse_date, print_json, print_synthetic, print_table

app = typer.Typer()


@app.command()
def run(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with NAME.tar files or NAME/ folders laid out SPLIT/CLASS/FILE. Without "
            "it, what was imported before is used, else built-in synthetic images.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    date: Annotated[str, typer.Option("--date", help="The night to score.")] = "today",
    json: Json = False,
) -> None:
    """Start the local stack, train the models, score a night and show the results.

    Everything goes through Airflow, as it would at night. The stack stays up afterwards;
    `nightscore down` stops it. A second run trains only models whose images have changed.
    """
    from ml import job
    from ml.settings import state_folder
    from ml.stack.local import LocalStack

    started = time.monotonic()

    def say(line: str) -> None:
        elapsed = timedelta(seconds=round(time.monotonic() - started))
        err.print(f"{elapsed}  {line}", highlight=False, markup=False)

    stack = LocalStack(state_folder())
    stack.up(say=say)
    summaries = job.run(data, parse_date(date), say)
    if json:
        print_json(summaries)
        return
    _show(summaries)
    for line in stack.addresses():
        out.print(line, highlight=False, markup=False)


def _show(summaries: list[dict[str, Any]]) -> None:
    columns = (
        "stream", "night", "status", "discovered", "scored", "rejected", "anomalies", "to_review",
        "versions",
    )  # fmt: skip
    print_table(columns, ([row[name] for name in columns] for row in summaries))
    if any(row["synthetic"] for row in summaries):
        print_synthetic()
    for row in summaries:
        if not row["discovered"]:
            out.print(f"{row['stream']}: no new image; those of the night were scored before")
        out.print(f"report of {row['stream']}: {row['report_uri']}", highlight=False)
