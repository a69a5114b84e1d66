"""How commands speak: tables and messages for people, one JSON document for machines.

Results go to standard output; progress, messages and errors go to standard error, so that
`nightscore ... --json | jq` always sees JSON alone.
"""

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import typer
from rich import box
from rich.console import Console
from rich.measure import Measurement
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


# In a file or a pipe a row of a table is a line, however wide: nothing of it is cut or folded.
_UNLIMITED = 100_000
out = _Terminal(soft_wrap=True, width=None if sys.stdout.isatty() else _UNLIMITED)
# Bound to the stream as it is now: what libraries print may be sent elsewhere meanwhile.
err = _Terminal(file=sys.stderr, stderr=True, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output; dates and UUIDs become strings."""
    typer.echo(json.dumps(value, default=_plain, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[str] = ()
) -> None:
    """Print rows as a table on standard output; None is shown empty, text is never markup.

    Numbers stand at the right, and the columns `right`. Rows that are wider than the terminal are
    printed one below the other, a line for each value.
    """
    cells, numeric = [], [True] * len(columns)
    for row in rows:
        cells.append([_cell(value) for value in row])
        for index, value in enumerate(row):
            is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
            numeric[index] &= value is None or is_number
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    columns = [_cell(column) for column in columns]
    for column, is_number in zip(columns, numeric, strict=True):
        justify: Any = "right" if (is_number and cells) or column in right else "left"
        table.add_column(column, overflow="fold", justify=justify)
    for row_cells in cells:
        table.add_row(*row_cells)
    wide = out.options.update(width=_UNLIMITED)
    if len(columns) > 3 and Measurement.get(out, wide, table).maximum > out.width:
        _print_records(columns, cells)
    else:
        out.print(table)


def _print_records(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    width = max(map(len, columns))
    for number, row in enumerate(rows, start=1):
        out.print(f"[bold]row {number}[/]")
        for column, cell in zip(columns, row, strict=True):
            out.print(f"  [bold]{column:{width}}[/]  {cell}", highlight=False)


def print_synthetic() -> None:
    """Say that the results above come from the built-in samples."""
    out.print("These results come from SYNTHETIC sample images, drawn by Nightscore itself.")


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
