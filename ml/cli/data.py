"""Commands that bring data in: `dataset`, `ingest`, `samples`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ml.cli.console import Json, err, out, parse_date, print_json, print_table, print_text
from ml.cli.progress import count_images
from ml.errors import ConfigurationError

app = typer.Typer()
dataset_app = typer.Typer(help="Labelled images in S3.", no_args_is_help=True)
app.add_typer(dataset_app, name="dataset")

Source = Annotated[Path, typer.Argument(help="A folder or a tar file.", exists=True)]


@dataset_app.command("import")
def import_(
    path: Source,
    name: Annotated[str, typer.Option(help="The name of the data set in nightscore.yaml.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove images that the source does not have.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy labelled images, laid out SPLIT/CLASS/FILE, into S3. Repeat it to resume."""
    from ml.config.loading import configuration
    from ml.data import dataset

    with count_images(f"importing {name}") as on_count:
        result = dataset.import_(
            path, name, storage=configuration().storage, replace=replace, on_progress=on_count
        )
    if json:
        print_json(asdict(result))
        return
    out.print(
        f"{name}: {result.images:,} images, {result.uploaded:,} uploaded, "
        f"{result.skipped:,} there already, {result.removed:,} removed"
    )
    print_table(("split/class", "images"), result.classes.items())
    if result.left_out:
        err.print(
            f"{result.left_out:,} image files are not laid out SPLIT/CLASS/FILE: they are left out"
        )


@dataset_app.command()
def download(
    name: Annotated[str, typer.Argument(help="A public data set: cifar10.")], json: Json = False
) -> None:
    """Fetch a public data set from the internet and import it."""
    import tempfile

    from ml.data import cifar10

    if name != "cifar10":
        raise ConfigurationError(f"There is no download for {name!r}.", "Known: cifar10.")
    with tempfile.TemporaryDirectory(prefix="nightscore-") as folder:
        import_(cifar10.download(Path(folder)), name, replace=False, json=json)


@dataset_app.command("list")
def list_(json: Json = False) -> None:
    """Show the data sets that are in S3."""
    from ml.config.loading import configuration
    from ml.data import dataset

    summaries = dataset.summaries(configuration().storage)
    if json:
        print_json([asdict(summary) for summary in summaries])
        return
    print_table(
        ("data set", "split/class", "images"),
        ((s.name, split, images) for s in summaries for split, images in s.classes.items()),
    )
    if not summaries:
        err.print("There is none yet; `nightscore dataset import` brings one.")


@app.command()
def ingest(
    path: Source,
    stream: Annotated[str, typer.Option(help="A stream of nightscore.yaml.")],
    date: Annotated[
        str, typer.Option("--date", help="The night: YYYY-MM-DD, today or yesterday (UTC).")
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="Take only this split of SPLIT/CLASS/FILE, under file names without the label."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Put images where a stream looks for them. Repeat it to resume."""
    from ml.config.loading import configuration
    from ml.data.ingest import ingest

    night = parse_date(date)
    with count_images(f"ingesting into {stream}") as on_count:
        result = ingest(
            path, configuration().stream(stream), night, split=split, on_progress=on_count
        )
    if json:
        print_json(asdict(result))
        return
    out.print(
        f"{stream}, night of {night}: {result.images:,} images, "
        f"{result.uploaded:,} uploaded, {result.skipped:,} there already"
    )


@app.command()
def samples(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")], json: Json = False
) -> None:
    """Draw the built-in synthetic sample data sets into a folder."""
    from ml.data import samples

    written = samples.write(folder)
    if json:
        print_json({name: str(path) for name, path in written.datasets.items()})
        return
    for name, path in written.datasets.items():
        print_text(f"{name}: {path}")
