"""What commands print: tables and messages for people, one JSON document for machines.

Results go to standard output. Progress, messages and errors go to standard error, so that
`nightscore ... --json | jq` only sees JSON.
"""

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

# Control characters, and those that change the direction of writing. A terminal obeys them, and the
# name of an image can contain them.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069"
_IN_A_CELL = re.compile(f"[{_CONTROL}]")
_IN_A_TEXT = re.compile(f"(?![\\n\\t])[{_CONTROL}]")


def printable(text: str, control: re.Pattern[str] = _IN_A_TEXT) -> str:
    r"""Write out the characters that a terminal would obey, such as `\x1b`; line breaks stay.

    Args:
        text: any text.
        control: matches the characters to write out.
    """
    return control.sub(lambda match: repr(match[0])[1:-1], text)


class _Terminal(Console):
    """A console on which text from elsewhere has no effect on the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print like `rich.console.Console`, with control characters written out."""
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)


# In a file or a pipe, each row of a table is one line, however wide, and nothing is cut off.
_UNLIMITED = 100_000
out = _Terminal(soft_wrap=True, width=None if sys.stdout.isatty() else _UNLIMITED)
# Bound to the stream as it is now, since the output of libraries may be redirected meanwhile.
err = _Terminal(file=sys.stderr, stderr=True, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output; dates and UUIDs become strings."""
    typer.echo(json.dumps(value, default=json_default, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[str] = ()
) -> None:
    """Print rows as a table on standard output; None is empty, and text is never markup.

    When the rows are wider than the terminal, each value is printed on a line of its own.

    Args:
        columns: the names of the columns.
        rows: their values.
        right: the columns to align right; columns of numbers are aligned right anyway.
    """
    cells, numeric = [], [True] * len(columns)
    for row in rows:
        cells.append([_format_cell(value) for value in row])
        for index, value in enumerate(row):
            is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
            numeric[index] &= value is None or is_number
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    columns = [_format_cell(column) for column in columns]
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


def print_text(text: str) -> None:
    """Print text on standard output as it is: no markup, no highlighting."""
    out.print(text, highlight=False, markup=False)


def print_message(text: str) -> None:
    """Print text on standard error as it is: no markup, no highlighting."""
    err.print(text, highlight=False, markup=False)


def print_synthetic() -> None:
    """Say that the results above come from the built-in samples."""
    out.print("These results come from SYNTHETIC sample images, drawn by Nightscore itself.")


def parse_date(text: str) -> date:
    """Parse the value of a date option: `YYYY-MM-DD`, `today` or `yesterday` (UTC).

    Raises:
        typer.BadParameter: the text is none of these.
    """
    today = datetime.now(UTC).date()
    relative = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        return relative[text] if text in relative else date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a date of the form YYYY-MM-DD.") from None


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping | list):
        value = json.dumps(value, default=json_default, ensure_ascii=False)
    text = str(json_default(value) if isinstance(value, datetime) else value)
    return escape(printable(text, _IN_A_CELL))


def json_default(value: Any) -> Any:
    """Convert what JSON has no type for; the argument `default` of `json.dumps`.

    Raises:
        TypeError: the value has no JSON form.
    """
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, date | UUID):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
