"""The command line `nightscore`. One file holds the commands of one concern.

Commands import what they need when they run, so that `nightscore --help` stays quick.
"""

import sys
from typing import Annotated

import typer

from ml.cli.console import err
from ml.errors import NightscoreError

app = typer.Typer(
    name="nightscore",
    help="Nightly batch scoring of images: data in, models, nights, results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"nightscore {version('nightscore')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _add_commands() -> None:
    from importlib import import_module

    for concern in ("job", "stack", "data", "models", "scoring", "database", "steps"):
        app.add_typer(import_module(f"ml.cli.{concern}").app)


def main() -> None:
    """Entry point: exit status 0 on success, 1 on a failure explained in a line, 2 on misuse."""
    _add_commands()
    try:
        app()
    except NightscoreError as error:
        err.print("[bold red]error:[/]", end=" ")
        err.print(error.message, highlight=False, markup=False)
        if error.hint:
            err.print(error.hint, highlight=False, markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
