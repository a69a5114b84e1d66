"""Commands on models: `train`, `evaluate`, `promote`, `rollback`, `models`, `models convert`."""

import getpass
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ml.cli import logs
from ml.cli.console import Json, err, out, print_json, print_table
from ml.cli.progress import counted, tracking
from ml.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from ml.registry.conversions import Conversion

app = typer.Typer()

ModelName = Annotated[str, typer.Argument(help="A model of nightscore.yaml.")]
Reason = Annotated[str, typer.Option(help="Kept with the change.")]


@app.command()
def train(
    model: ModelName,
    from_run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="Repeat this MLflow run: its snapshot and recorded configuration instead of "
            "today's. Says what differs from then; the version is not promoted.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train a new version: the steps of the DAG retrain_MODEL, in this process."""
    from ml.retrain import steps as retrain

    logs.show_own()
    with tracking() as tracker:

        def on_step(step: str) -> None:
            tracker.done(model)
            tracker.doing(model, step)

        if from_run:
            result = retrain.reproduce(model, from_run, on_step)
        else:
            result = retrain.retrain(model, on_step)
    if json:
        print_json(result)
        return
    if from_run:
        _show_repetition(result)
        return
    became = "champion" if result["promoted"] else "challenger only: it did not pass the gate"
    out.print(f"{model}: version {result['version']} is {became}")


def _show_repetition(result: dict[str, Any]) -> None:
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
        Path, typer.Option(help="Folder or tar laid out SPLIT/CLASS/FILE.", exists=True)
    ],
    split: Annotated[str, typer.Option(help="Which split to measure on.")] = "test",
    json: Json = False,
) -> None:
    """Measure a version on labelled images."""
    from ml.evaluation.evaluate import evaluate_files
    from ml.program.device import select_device
    from ml.registry import programs

    name, version = _resolve(model)
    program = programs.load(name, version, select_device())
    with counted(f"measuring {name}/{version}") as done:
        metrics = evaluate_files(program, data, split, done).metrics
    if json:
        print_json(metrics)
        return
    out.print(f"{name}/{version} on {split} of {data}", highlight=False, markup=False)
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
        listed = ", ".join(map(str, versions.versions(name))) or "none"
        raise DataError(
            f"{name} has no version with the alias {alias or CHAMPION}.",
            f"Registered versions: {listed}. `nightscore train {name}` makes one.",
        )
    return name, version


@app.command()
def promote(
    model: ModelName,
    version: Annotated[int, typer.Argument(help="The version that becomes champion.")],
    reason: Reason = "by hand",
    json: Json = False,
) -> None:
    """Make a version champion, whatever the gate said; the next night uses it."""
    from ml.registry import promotion

    _changed(asdict(promotion.promote(model, version, reason=reason, by=getpass.getuser())), json)


@app.command()
def rollback(model: ModelName, reason: Reason = "by hand", json: Json = False) -> None:
    """Return to the champion before; the next night uses it."""
    from ml.registry import promotion

    _changed(asdict(promotion.rollback(model, reason=reason, by=getpass.getuser())), json)


def _changed(result: dict[str, Any], json: bool) -> None:
    if json:
        print_json(result)
    elif result["changed"]:
        before = result["replaced"] or "none"
        out.print(f"{result['model']}: champion is version {result['version']} (was {before})")
    else:
        out.print(f"{result['model']}: version {result['version']} is champion already")


listing = typer.Typer(
    invoke_without_command=True,
    help="List the registered versions, as reporting.model_versions has them; or convert them.",
)
app.add_typer(listing, name="models")


@listing.callback()
def models(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        _list(json)


@listing.command()
def convert(
    model: Annotated[
        str | None, typer.Argument(help="A model of nightscore.yaml; without it, all of them.")
    ] = None,
    json: Json = False,
) -> None:
    """Make the form in which CPUs run champion, challenger and previous (OpenVINO) anew.

    Workers fetch it, instead of converting the program themselves when they first use a version.
    For versions from before there were such forms, and after an update of OpenVINO.
    """
    from ml.config.loading import configuration
    from ml.registry import conversions

    logs.show_own()
    names = [model] if model else list(configuration().models)
    for name in names:
        configuration().model(name)  # refuses what is no model
    found = [one for name in names for one in conversions.convert(name)]
    if json:
        print_json([asdict(one) for one in found])
    else:
        for one in found:
            _show_conversion(one)
        if not found:
            err.print("There is no version yet; `nightscore train MODEL` makes one.")
    if lacking := [f"{one.model}/{one.version}" for one in found if one.openvino is None]:
        raise DataError(
            f"OpenVINO cannot run {', '.join(lacking)}.", "On a CPU torch does, more slowly."
        )


def _show_conversion(one: "Conversion") -> None:
    name = f"{one.model}: version {one.version} ({', '.join(one.aliases)})"
    if one.made:
        out.print(f"{name} is converted by OpenVINO {one.openvino}", highlight=False)
    elif one.openvino:
        out.print(f"{name} has its form of OpenVINO {one.openvino} already", highlight=False)


def _list(json: bool) -> None:
    from ml.database.connection import analyst_engine, rows

    with analyst_engine().connect() as connection:
        found = rows(connection, "registry/sql/list_versions")
    if json:
        print_json(found)
        return
    columns = (
        "model", "version", "alias", "gate_passed", "gate_reason", "synthetic", "registered_at",
    )  # fmt: skip
    print_table(columns, ([row[column] for column in columns] for row in found))
    if not found:
        err.print("There is none yet; `nightscore train MODEL` makes one.")
