"""The command `run`: the main job, end to end."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ml.cli.console import (
    Json,
    err,
    out,
    parse_date,
    print_json,
    print_synthetic,
    print_table,
    print_text,
)
from ml.cli.logs import is_verbose
from ml.cli.progress import show_progress

if TYPE_CHECKING:
    from ml.stack.quickstart import Result

app = typer.Typer()

# Task → the metric that is shown for a model.
_METRICS = {"classification": "accuracy", "anomaly": "auroc"}


@app.command()
def run(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with NAME.tar files or NAME/ folders, laid out SPLIT/CLASS/FILE. Without "
            "it, the images that were imported before are used, or built-in synthetic ones.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    date: Annotated[
        str,
        typer.Option("--date", help="The night to score: YYYY-MM-DD, today or yesterday (UTC)."),
    ] = "today",
    json: Json = False,
) -> None:
    """Start the local stack, train the models, score a night and show the results.

    All of it goes through Airflow, as in production. The stack stays up afterwards;
    `nightscore down` stops it. A second run trains only models whose images have changed.
    """
    from ml.settings import state_folder
    from ml.stack import quickstart
    from ml.stack.local import LocalStack

    night = parse_date(date)
    stack = LocalStack(state_folder())
    try:
        with show_progress() as progress:
            result = quickstart.run(data, night, stack, progress, verbose=is_verbose())
    except KeyboardInterrupt:
        err.print("Airflow continues the runs that it has started; `nightscore down` stops it.")
        raise
    if json:
        print_json(_summaries_with_addresses(result))
        return
    _print_result(result)
    out.print("\nLog in")
    for line in stack.addresses():
        print_text(f"  {line}")
    out.print("\n`make stop` or `nightscore down` stops the stack; the data stay.", highlight=False)


def _summaries_with_addresses(result: "Result") -> list[dict[str, Any]]:
    from ml.stack.airflow_client import report_page, run_page

    return [
        {
            **row,
            "report_url": report_page(row["run_id"]),
            "airflow_url": run_page(result.scored[row["stream"]]),
        }
        for row in result.summaries
    ]


def _print_result(result: "Result") -> None:
    out.print("")
    print_table(
        ("model", "version", "measure", "held-out images", "test images", "trained"),
        (_model_row(row, result) for row in result.champions),
    )
    out.print("")
    counts = ("images", "scored", "rejected", "anomalies", "to review")
    print_table(
        ("stream", "night", *counts, "images/s", "in all"),
        map(_night_row, result.summaries),
        right=(*counts, "images/s", "in all"),
    )
    out.print(
        "images/s: while a shard is scored; in all: from the first step of a night to its last"
    )
    if any(row["synthetic"] for row in result.summaries):
        out.print("")
        print_synthetic()
    for row in result.summaries:
        if not row["discovered"]:
            out.print(f"{row['stream']}: no new image; those of the night were scored before")
    out.print("\nOpen in a browser")
    addresses = list(_addresses(result))
    width = max(len(label) for label, _ in addresses)
    for label, address in addresses:
        print_text(f"  {label:{width}}  {address}")


def _model_row(row: dict[str, Any], result: "Result") -> list[Any]:
    metric = _METRICS[row["task"]]
    return [
        row["model"],
        row["version"],
        metric.upper() if metric == "auroc" else metric,
        row["metrics"].get(metric),
        row["metrics"].get(f"test_{metric}"),
        "now" if result.trained[row["model"]] else f"{row['registered_at']:%Y-%m-%d %H:%M}",
    ]


def _night_row(row: dict[str, Any]) -> list[Any]:
    counts = ("discovered", "scored", "rejected", "anomalies", "to_review")
    rate = row["engine_images_per_second"]
    return [
        row["stream"],
        row["night"],
        *(f"{row[name] or 0:,}" for name in counts),
        f"{rate:,.0f}" if rate else None,
        f"{row['seconds']:.1f} s",
    ]


def _addresses(result: "Result") -> Iterator[tuple[str, str]]:
    """What to open in a browser: label and address."""
    from ml.registry.versions import ui_url
    from ml.stack.airflow_client import report_page, run_page

    for row in result.summaries:
        yield f"report of {row['stream']}", report_page(row["run_id"])
    for dag_run in result.scored.values():
        yield "DAG run", run_page(dag_run)
    for dag_run in filter(None, result.trained.values()):
        yield "training", run_page(dag_run)
    for row in result.champions:
        yield "version", ui_url(row["model"], row["version"])
