"""How commands speak: tables and messages for people, one JSON document for machines.

Results go to standard output; progress, messages and errors go to standard error, so that
`nightscore ... --json | jq` always sees JSON alone.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# What goes to a file or a pipe is not squeezed into a terminal's width.
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output; dates and UUIDs become strings."""
    typer.echo(json.dumps(value, default=_plain, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows as a table on standard output; None is shown empty, text is never markup."""
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    out.print(table)


def print_synthetic() -> None:
    """Say that the results above come from the built-in samples."""
    out.print("These results come from SYNTHETIC sample images, drawn by Nightscore itself.")


def progress() -> Progress:
    """A progress bar on standard error that vanishes when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


@contextmanager
def counted(description: str) -> Iterator[Callable[[int], None]]:
    """A progress bar for work of unknown length; gives what takes the number done so far."""
    with progress() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done: bar.update(task, completed=done)


def parse_date(text: str) -> date:
    """`YYYY-MM-DD`, `today` or `yesterday` (UTC) as a date, for options of the command line."""
    from datetime import UTC, timedelta

    today = datetime.now(UTC).date()
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        return named[text] if text in named else date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a date of the form YYYY-MM-DD.") from None


def _cell(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping | list):
        return escape(json.dumps(value, default=_plain, ensure_ascii=False))
    return escape(str(_plain(value) if isinstance(value, datetime) else value))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, date | UUID):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
