"""The command line `nightscore`. One file holds the commands of one concern.

Commands import what they need when they run, so that `nightscore --help` stays quick.
"""

import copy
import sys
from typing import Annotated, Any

import typer
from typer.main import get_command

from ml.cli import logs
from ml.cli.console import err
from ml.errors import NightscoreError
from ml.settings import state_folder

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


def _verbose(wanted: bool) -> bool:
    if wanted:
        logs.be_verbose()
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            callback=_verbose,
            help="Show also what libraries and Airflow's tasks log.",
        ),
    ] = False,
) -> None:
    pass


def _add_commands() -> None:
    from importlib import import_module

    for concern in ("run", "stack", "data", "models", "scoring", "database", "steps"):
        app.add_typer(import_module(f"ml.cli.{concern}").app)


def command() -> Any:
    """The whole command line; every command takes `--verbose`, as the program itself does."""
    if not app.registered_groups:
        _add_commands()
    root = get_command(app)
    verbose = copy.copy(next(option for option in root.params if option.name == "verbose"))
    verbose.expose_value = False
    _add_option(root, verbose)
    return root


def _add_option(group: Any, option: Any) -> None:
    for child in group.commands.values():
        child.params.append(option)
        if hasattr(child, "commands"):
            _add_option(child, option)


def main() -> None:
    """Entry point: exit status 0 on success, 1 on a failure explained in a line, 2 on misuse."""
    logs.start(state_folder())
    try:
        command()()
    except NightscoreError as error:
        err.print("[bold red]error:[/]", end=" ")
        err.print(error.message, highlight=False, markup=False)
        if error.hint:
            err.print(error.hint, highlight=False, markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
