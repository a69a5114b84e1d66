"""Commands on the local stack: `up`, `down`, `status`, `doctor`."""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from ml.cli.console import Json, err, out, print_json, print_table
from ml.cli.progress import tracking
from ml.errors import ConfigurationError

app = typer.Typer()


def _say(line: str) -> None:
    err.print(line, highlight=False, markup=False)


@app.command()
def up(
    only: Annotated[
        str,
        typer.Option(help="Start these only: some of postgres,s3,mlflow,airflow."),
    ] = "",
) -> None:
    """Start PostgreSQL, S3, MLflow and Airflow on 127.0.0.1; harmless when they run.

    Everything is kept in .nightscore/ (NIGHTSCORE_HOME). Ports: NIGHTSCORE_POSTGRES_PORT,
    NIGHTSCORE_S3_PORT, NIGHTSCORE_MLFLOW_PORT, NIGHTSCORE_AIRFLOW_PORT.
    """
    from ml.settings import state_folder
    from ml.stack.local import SERVICES, LocalStack

    services = tuple(part.strip() for part in only.split(",") if part.strip()) or SERVICES
    if unknown := set(services) - set(SERVICES):
        raise ConfigurationError(
            f"There is no service {', '.join(sorted(unknown))}.", f"Known: {', '.join(SERVICES)}."
        )
    stack = LocalStack(state_folder())
    with tracking() as progress:
        progress.doing("local stack", f"starting {', '.join(services)}")
        stack.up(services, on_message=progress.say)
    if set(services) == set(SERVICES):
        for line in stack.addresses():
            out.print(line, highlight=False, markup=False)


@app.command()
def down() -> None:
    """Stop everything that `up` started. The data stay."""
    from ml.settings import state_folder
    from ml.stack.local import LocalStack

    _say("the stack is down" if LocalStack(state_folder()).down(_say) else "nothing was running")


@app.command()
def status(json: Json = False) -> None:
    """Show the processes of the stack; exit status 1 when one does not run, 3 when none does."""
    from ml.settings import state_folder
    from ml.stack.local import LocalStack

    processes = LocalStack(state_folder()).status()
    if json:
        print_json([asdict(process) for process in processes])
    elif processes:
        print_table(
            ("process", "state", "pid", "uptime", "address"),
            ((p.name, p.state, p.pid, _uptime(p.uptime_s), p.address) for p in processes),
        )
        for process in processes:
            if not process.is_running:
                _say(f"\n{process.name} is {process.state}. The end of its log:\n{process.log}")
    else:
        _say("The stack is down; `nightscore up` starts it.")
    if not processes:
        raise typer.Exit(3)
    if not all(process.is_running for process in processes):
        raise typer.Exit(1)


@app.command()
def doctor(json: Json = False) -> None:
    """Check the installation and every service; a line each, with what to do when it is wrong."""
    from ml.stack.doctor import run_checks

    checks = []
    for check in run_checks():
        checks.append(check)
        if not json:
            mark = "[green]ok[/]   " if check.ok else "[red]wrong[/]"
            out.print(f"{mark} {check.name:14}", end="", highlight=False)
            out.print(check.message, highlight=False, markup=False)
    if json:
        print_json([asdict(check) for check in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _uptime(seconds: int | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=seconds))
