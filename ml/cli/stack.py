"""Commands on the local stack: `up`, `down`, `status`, `doctor`."""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer

from ml.cli.console import Json, out, print_json, print_message, print_table, print_text
from ml.cli.progress import show_progress
from ml.errors import ConfigurationError

app = typer.Typer()


@app.command()
def up(
    only: Annotated[
        str,
        typer.Option(help="Start only these: some of postgres,s3,mlflow,airflow."),
    ] = "",
) -> None:
    """Start PostgreSQL, S3, MLflow and Airflow on 127.0.0.1; harmless when they run.

    All data are kept in .nightscore/ (NIGHTSCORE_HOME). Ports: NIGHTSCORE_POSTGRES_PORT,
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
    with show_progress() as progress:
        progress.update("local stack", f"starting {', '.join(services)}")
        stack.up(services, on_message=progress.message)
    if set(services) == set(SERVICES):
        for line in stack.addresses():
            print_text(line)


@app.command()
def down() -> None:
    """Stop everything that `up` started. The data stay."""
    from ml.settings import state_folder
    from ml.stack.local import LocalStack

    was_running = LocalStack(state_folder()).down(print_message)
    print_message("the stack is down" if was_running else "nothing was running")


@app.command()
def status(json: Json = False) -> None:
    """Show the stack's processes; exit status 1 when one does not run, 3 when none does."""
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
                print_message(
                    f"\n{process.name} is {process.state}. The end of its log:\n{process.log}"
                )
    else:
        print_message("The stack is down; `nightscore up` starts it.")
    if not processes:
        raise typer.Exit(3)
    if not all(process.is_running for process in processes):
        raise typer.Exit(1)


@app.command()
def doctor(json: Json = False) -> None:
    """Check the installation and every service; each check prints a line that says what to do."""
    from ml.stack.doctor import run_checks

    checks = []
    for check in run_checks():
        checks.append(check)
        if not json:
            verdict = "[green]ok[/]   " if check.ok else "[red]wrong[/]"
            out.print(f"{verdict} {check.name:14}", end="", highlight=False)
            print_text(check.message)
    if json:
        print_json([asdict(check) for check in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _uptime(seconds: int | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=seconds))
