"""The command `cameras`: what a stream's pattern finds, and the cameras of stored images."""

import dataclasses
import datetime
from typing import Annotated, Any

import typer

from ml.cli.console import Json, out, parse_date, print_json, print_message, print_table
from ml.cli.progress import count_images

app = typer.Typer()

_Night = "YYYY-MM-DD, today or yesterday (UTC)."


@app.command()
def cameras(
    stream: Annotated[str, typer.Argument(help="A stream of nightscore.yaml.")],
    first: Annotated[
        str | None, typer.Option(help=f"The first night, else the first one scored: {_Night}")
    ] = None,
    last: Annotated[
        str | None, typer.Option(help=f"The last night, else the last one scored: {_Night}")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only show the cameras of a night's objects; writes nothing."),
    ] = False,
    date: Annotated[str, typer.Option("--date", help=f"With --check, the night: {_Night}")] = (
        "today"
    ),
    json: Json = False,
) -> None:
    """Give stored images the cameras that the stream's key_pattern finds in their keys.

    New images get theirs when they are discovered. This is for those of
    before, or of before a change of the pattern. It works in small batches,
    also while a night is scored, and can be interrupted and repeated.
    """
    if check:
        if first or last:
            raise typer.BadParameter("--check takes --date, not --first and --last.")
        _check(stream, parse_date(date), json)
        return
    nights = (
        parse_date(first) if first else datetime.date.min,
        parse_date(last) if last else datetime.date.max,
    )
    if nights[0] > nights[1]:
        raise typer.BadParameter("--first is after --last.")
    _backfill(stream, *nights, json)


def _check(stream: str, night: datetime.date, json: bool) -> None:
    from ml.scoring import camera_backfill

    with count_images(f"reading the keys of {stream}") as on_count:
        result = camera_backfill.check(stream, night, on_count)
    if json:
        print_json(
            {
                "night": night,
                "cameras": [{**name._asdict(), "images": n} for name, n in result.cameras],
                "without_camera": result.without_camera,
                "examples": result.examples,
            }
        )
        return
    print_table(["camera", "line", "product", "images"], [(*name, n) for name, n in result.cameras])
    images = result.without_camera + sum(n for _, n in result.cameras)
    print_message(
        f"{images:,} images in the night of {night}: {len(result.cameras):,} cameras, "
        f"{result.without_camera:,} images without one; nothing was written"
    )
    for uri in result.examples:
        print_message(f"without a camera: {uri}")


def _backfill(stream: str, first: datetime.date, last: datetime.date, json: bool) -> None:
    from ml.scoring import camera_backfill

    done: list[dict[str, Any]] = []
    with count_images(f"cameras of {stream}") as on_count:

        def on_images(night: datetime.date, images: int) -> None:
            on_count(sum(each["images"] for each in done) + images)

        for night in camera_backfill.backfill(stream, first, last, on_images):
            done.append(dataclasses.asdict(night))
            kept = "" if night.is_summed else "; its sums stay, as rows of it have been deleted"
            print_message(
                f"{night.night}: {night.images:,} images, {night.changed:,} changed{kept}"
            )
    if json:
        print_json(done)
        return
    images, changed = (sum(each[key] for each in done) for key in ("images", "changed"))
    out.print(
        f"{len(done):,} nights, {images:,} images, {changed:,} of them have another camera now"
    )
