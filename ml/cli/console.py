"""How commands speak: tables and messages for people, one JSON document for machines.

Results go to standard output; progress, messages and errors go to standard error, so that
`nightscore ... --json | jq` always sees JSON alone.
"""

import json
import logging
import re
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

# Control characters, and those that turn the direction of writing: a terminal obeys them, and the
# name of an image can hold them.
_COMMANDS = r"\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069"
_IN_A_CELL = re.compile(f"[{_COMMANDS}]")
_IN_A_TEXT = re.compile(f"(?![\\n\\t])[{_COMMANDS}]")


def printable(text: str, commands: re.Pattern[str] = _IN_A_TEXT) -> str:
    """The text with what a terminal would obey written out, as `\\x1b`; lines stay lines."""
    return commands.sub(lambda found: repr(found[0])[1:-1], text)


class _Terminal(Console):
    """A console that shows names as they are and obeys none."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)


# What goes to a file or a pipe is not squeezed into a terminal's width.
out = _Terminal(soft_wrap=True, width=None if sys.stdout.isatty() else 240)
err = _Terminal(stderr=True, soft_wrap=True)

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


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def show_log() -> None:
    """Show what `ml` logs on standard error, and of libraries their warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("mlflow", "httpx", "alembic", "matplotlib", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


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
        value = json.dumps(value, default=_plain, ensure_ascii=False)
    shown = str(_plain(value) if isinstance(value, datetime) else value)
    return escape(printable(shown, _IN_A_CELL))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, date | UUID):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
