"""The command line `nightscore`; each file has the commands of one concern.

Commands import what they need when they run, so that `nightscore --help` stays fast.
"""

import copy
import sys
from typing import Annotated, Any

import typer
from typer.main import get_command

from ml.cli import logs
from ml.cli.console import err
from ml.cli.extras import missing_extra
from ml.cores import limit_library_threads
from ml.errors import NightscoreError
from ml.settings import state_folder

# The modules with the commands, in the order of `nightscore --help`.
_CONCERNS = (
    "run",
    "stack",
    "data",
    "training",
    "models",
    "scoring",
    "cameras",
    "database",
    "maintenance",
    "prepare",
    "metrics",
    "capacity",
    "steps",
)

app = typer.Typer(
    name="nightscore",
    help="Nightly batch scoring of images: data in, models, nights, results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"nightscore {version('nightscore')}")
        raise typer.Exit


def _set_verbose(verbose: bool) -> bool:
    if verbose:
        logs.show_all()
    return verbose


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            callback=_set_verbose,
            help="Also show what libraries and Airflow's tasks log.",
        ),
    ] = False,
) -> None:
    pass


def _add_commands() -> None:
    from importlib import import_module

    for concern in _CONCERNS:
        app.add_typer(import_module(f"ml.cli.{concern}").app)


def command() -> Any:
    """Return the command line; every command takes `--verbose`, as `nightscore` itself does."""
    if not app.registered_groups:
        _add_commands()
    root = get_command(app)
    verbose = copy.copy(next(option for option in root.params if option.name == "verbose"))
    verbose.expose_value = False
    _add_option(root, verbose)
    return root


def _add_option(group: Any, option: Any) -> None:
    """Add an option to all commands of a group and of the groups in it."""
    for child in group.commands.values():
        child.params.append(option)
        if hasattr(child, "commands"):
            _add_option(child, option)


def main() -> None:
    """Run the command line.

    The exit status is 0 on success, 1 on an error that is explained in a line, 2 on misuse and 130
    after Ctrl-C.
    """
    limit_library_threads()
    logs.start(state_folder())
    try:
        command()()
    except NightscoreError as error:
        _explain(error)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (explained := missing_extra(error)) is None:
            raise
        _explain(explained)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)


def _explain(error: NightscoreError) -> None:
    err.print("[bold red]error:[/]", end=" ")
    err.print(error.message, highlight=False, markup=False)
    if error.hint:
        err.print(error.hint, highlight=False, markup=False)
