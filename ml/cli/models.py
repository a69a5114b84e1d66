"""Commands on registered versions: `promote`, `rollback`, `models`, `models convert`."""

import getpass
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ml.cli import logs
from ml.cli.console import Json, err, out, print_json, print_table
from ml.errors import DataError

if TYPE_CHECKING:
    from ml.registry.openvino_conversion import Conversion
    from ml.registry.promotion import PromotionResult

app = typer.Typer()

ModelName = Annotated[str, typer.Argument(help="A model of nightscore.yaml.")]
Reason = Annotated[str, typer.Option(help="Why; it is stored with the change.")]


@app.command()
def promote(
    model: ModelName,
    version: Annotated[int, typer.Argument(help="The version that becomes champion.")],
    reason: Reason = "by hand",
    json: Json = False,
) -> None:
    """Make a version champion, whatever the gate decided; the next night uses it."""
    from ml.registry import promotion

    result = promotion.promote(model, version, reason=reason, by=getpass.getuser())
    _print_promotion(result, json)


@app.command()
def rollback(model: ModelName, reason: Reason = "by hand", json: Json = False) -> None:
    """Return to the champion before; the next night uses it."""
    from ml.registry import promotion

    result = promotion.rollback(model, reason=reason, by=getpass.getuser())
    _print_promotion(result, json)


def _print_promotion(result: "PromotionResult", json: bool) -> None:
    if json:
        print_json(asdict(result))
    elif result.changed:
        previous = result.replaced or "none"
        out.print(f"{result.model}: champion is version {result.version} (was {previous})")
    else:
        out.print(f"{result.model}: version {result.version} is champion already")


models_app = typer.Typer(
    invoke_without_command=True,
    help="List the registered versions, as reporting.model_versions has them; or convert them.",
)
app.add_typer(models_app, name="models")


@models_app.callback()
def models(context: typer.Context, json: Json = False) -> None:
    """List the registered versions, unless a subcommand is called."""
    if context.invoked_subcommand is None:
        _list_versions(json)


def _list_versions(json: bool) -> None:
    from ml.database.connection import analyst_engine
    from ml.registry import versions

    with analyst_engine().connect() as connection:
        rows = versions.version_rows(connection)
    if json:
        print_json(rows)
        return
    columns = (
        "model", "version", "alias", "gate_passed", "gate_reason", "synthetic", "registered_at",
        "deleted_at",
    )  # fmt: skip
    print_table(columns, ([row[column] for column in columns] for row in rows))
    if not rows:
        err.print("There is none yet; `nightscore train MODEL` makes one.")


@models_app.command()
def convert(
    model: Annotated[
        str | None, typer.Argument(help="A model of nightscore.yaml; without it, all of them.")
    ] = None,
    json: Json = False,
) -> None:
    """Convert champion, challenger and previous to the form that CPUs run (OpenVINO).

    Workers fetch this form, instead of converting the program themselves when they first use a
    version. For versions from before there were such forms, and after an update of OpenVINO.
    """
    from ml.config.loading import configuration
    from ml.registry import openvino_conversion

    logs.show_own_info()
    names = [model] if model else list(configuration().models)
    for name in names:
        configuration().model(name)  # raises ConfigurationError when there is no such model
    conversions = [result for name in names for result in openvino_conversion.convert(name)]
    if json:
        print_json([asdict(conversion) for conversion in conversions])
    else:
        for conversion in conversions:
            _print_conversion(conversion)
        if not conversions:
            err.print("There is no version yet; `nightscore train MODEL` makes one.")
    if failed := [f"{c.model}/{c.version}" for c in conversions if c.openvino is None]:
        raise DataError(
            f"OpenVINO cannot run {', '.join(failed)}.", "On a CPU torch does, more slowly."
        )


def _print_conversion(conversion: "Conversion") -> None:
    aliases = ", ".join(conversion.aliases)
    name = f"{conversion.model}: version {conversion.version} ({aliases})"
    if conversion.made:
        out.print(f"{name} is converted by OpenVINO {conversion.openvino}", highlight=False)
    elif conversion.openvino:
        out.print(f"{name} has its form of OpenVINO {conversion.openvino} already", highlight=False)
