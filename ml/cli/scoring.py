"""Commands on nights: `score` and `report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ml.cli.console import (
    Json,
    err,
    out,
    parse_date,
    print_json,
    print_message,
    print_synthetic,
)
from ml.cli.progress import count_images

app = typer.Typer()

Stream = Annotated[str, typer.Argument(help="A stream of nightscore.yaml.")]
Night = Annotated[
    str, typer.Option("--date", help="The night: YYYY-MM-DD, today or yesterday (UTC).")
]


@app.command()
def score(stream: Stream, date: Night = "today", json: Json = False) -> None:
    """Score the new images of a night: the steps of the DAG score_STREAM, in this process."""
    from ml.scoring import steps

    night = parse_date(date).isoformat()
    done = 0
    with count_images(f"scoring {stream}") as on_count:

        def on_images(count: int, total: int) -> None:
            nonlocal done
            done += count
            on_count(done, total)

        counts = steps.score_night(stream, night, on_images)
    if json:
        print_json(counts)
        return
    out.print(
        f"{stream}, night of {night}: {counts['discovered']:,} new images, "
        f"{counts['scored']:,} scored, {counts['rejected']:,} rejected, "
        f"{counts['anomalies']:,} anomalies, {counts['to_review']:,} to review"
    )
    rate = counts["engine_images_per_second"]
    while_scoring = f", {rate:,.0f} images per second while scoring" if rate else ""
    out.print(f"{counts['seconds']:.1f} s in all{while_scoring}", highlight=False)
    if counts["synthetic"]:
        print_synthetic()
    out.print(f"report: {counts['report_uri']}")
    _print_report_page(counts["run_id"])


@app.command()
def report(
    stream: Stream,
    date: Night = "today",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the page to this file.")
    ] = None,
    json: Json = False,
) -> None:
    """Write the report of a night's newest scoring run again and print its URI."""
    from ml.report import nightly
    from ml.scoring import runs
    from ml.storage.object_store import object_store

    run_id = runs.newest_run(stream, parse_date(date))
    uri = nightly.write(run_id)
    result: dict[str, Any] = {"run_id": str(run_id), "report_uri": uri}
    if output is not None:
        output.write_bytes(object_store().get(uri)[0])
        err.print(f"written to {output}")
        result["file"] = str(output)
    if json:
        print_json(result)
    else:
        out.print(uri)
        _print_report_page(run_id)


def _print_report_page(run_id: Any) -> None:
    """Say where a browser shows a run's report, if there is an Airflow."""
    from ml.settings import settings
    from ml.stack.airflow_client import report_page

    if settings().airflow_url:
        print_message(f"in a browser: {report_page(run_id)}")
