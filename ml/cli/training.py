"""Commands that train and measure versions: `train` and `evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ml.cli import logs
from ml.cli.console import Json, out, print_json, print_table, print_text
from ml.cli.progress import count_images, show_progress
from ml.errors import ConfigurationError, DataError

app = typer.Typer()


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A model of nightscore.yaml.")],
    from_run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="Repeat this MLflow run: use its snapshot and its recorded configuration instead "
            "of today's, and show what differs from then. The version is not promoted.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train a new version: the steps of the DAG retrain_MODEL, in this process."""
    from ml.retrain import steps

    logs.show_own_info()
    with show_progress() as progress:

        def on_step(step: str) -> None:
            progress.finish(model)
            progress.update(model, step)

        if from_run:
            result = steps.reproduce(model, from_run, on_step)
        else:
            result = steps.retrain(model, on_step)
    if json:
        print_json(result)
        return
    if from_run:
        _print_reproduction(result)
        return
    alias = "champion" if result["promoted"] else "challenger only: it did not pass the gate"
    out.print(f"{model}: version {result['version']} is {alias}")


def _print_reproduction(result: dict[str, Any]) -> None:
    def verdict(name: str) -> str:
        return f"{name} {'identical' if result[f'{name}_identical'] else 'NOT identical'}"

    out.print(
        f"{result['model']}: version {result['version']} repeats run {result['repeats']}; "
        "it is challenger only",
        highlight=False,
    )
    if result["circumstances"]:
        out.print("What differs from then:")
        rows = ((name, *pair) for name, pair in result["circumstances"].items())
        print_table(("circumstance", "recorded", "now"), rows)
    else:
        out.print("Versions, code, device and threads are those recorded.")
    if result["metrics"]:
        rows = ((name, *map(repr, pair)) for name, pair in result["metrics"].items())
        print_table(("metric", "recorded", "now"), rows)
    out.print(f"{verdict('weights')}, {verdict('metrics')}", highlight=False)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="MODEL, MODEL@ALIAS or MODEL/VERSION; by default the champion.")
    ],
    data: Annotated[
        Path, typer.Option(help="Folder or tar file, laid out SPLIT/CLASS/FILE.", exists=True)
    ],
    split: Annotated[str, typer.Option(help="The split to measure on.")] = "test",
    json: Json = False,
) -> None:
    """Measure a version on labelled images."""
    from ml.evaluation.evaluate import evaluate_files
    from ml.program.device import select_device
    from ml.registry import programs

    name, version = _resolve(model)
    program = programs.load(name, version, select_device())
    with count_images(f"measuring {name}/{version}") as on_count:
        metrics = evaluate_files(program, data, split, on_count).metrics
    if json:
        print_json(metrics)
        return
    print_text(f"{name}/{version} on {split} of {data}")
    if program.info.synthetic:
        out.print("The version was trained on SYNTHETIC sample images.")
    per_class = metrics.pop("per_class", {})
    print_table(("metric", "value"), metrics.items())
    if per_class:
        columns = ("precision", "recall", "f1", "support")
        print_table(
            ("class", *columns),
            ((key, *(row[column] for column in columns)) for key, row in per_class.items()),
        )


def _resolve(text: str) -> tuple[str, int]:
    """Model and version that MODEL, MODEL@ALIAS or MODEL/VERSION names."""
    from ml.database.tables import CHAMPION
    from ml.registry import versions

    name, slash, number = text.partition("/")
    if slash:
        if not number.isdecimal():
            raise ConfigurationError(f"{number!r} is not a version.", "Write MODEL/3.")
        return name, int(number)
    name, _, alias = text.partition("@")
    version = versions.version_of_alias(name, alias or CHAMPION)
    if version is None:
        numbers = ", ".join(map(str, versions.list_versions(name))) or "none"
        raise DataError(
            f"{name} has no version with the alias {alias or CHAMPION}.",
            f"Registered versions: {numbers}. `nightscore train {name}` makes one.",
        )
    return name, version
