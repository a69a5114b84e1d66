"""How long work shows that it goes on: on a terminal live, in a pipe as a line now and then."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ml.cli.console import err, printable
from ml.cli.logs import is_verbose

EVERY_S = 15.0
WIDTH = 100  # of a line in a pipe or a file


class Tracker(Protocol):
    """Follows several things that are done side by side, each known by its name."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def doing(self, what: str, detail: str) -> None:
        """Show what is being done about `what` now."""

    def done(self, what: str) -> None:
        """Nothing more is done about `what`."""


class _Clock:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def elapsed(self) -> str:
        return str(timedelta(seconds=round(time.monotonic() - self._started)))

    def say(self, line: str) -> None:
        err.print(f"{self.elapsed()}  {line}", highlight=False, markup=False)


class _Lines(_Clock):
    """A line when something begins, and then one every few seconds while it goes on."""

    def __init__(self, every_s: float) -> None:
        super().__init__()
        self._every_s = every_s
        self._now: dict[str, str] = {}
        self._said: dict[str, tuple[float, str]] = {}

    def doing(self, what: str, detail: str) -> None:
        with self._lock:
            self._now[what] = detail
            lines = self._due(time.monotonic())
        for line in lines:
            self.say(shortened(line, WIDTH - len(self.elapsed()) - 2))

    def _due(self, now: float) -> list[str]:
        """What is to be said, also of what came too soon and still lasts, such as a wait."""
        lines = []
        for what, detail in self._now.items():
            at, before = self._said.get(what, (float("-inf"), ""))
            if detail != before and now - at >= self._every_s:
                self._said[what] = now, detail
                lines.append(f"{what}: {detail}")
        return lines

    def done(self, what: str) -> None:
        with self._lock:
            self._now.pop(what, None)
            self._said.pop(what, None)


@dataclass
class _Row:
    detail: str
    since: float = field(default_factory=time.monotonic)
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="cyan"))


class _Rows(_Clock):
    """A row of a terminal for each thing, with the time that it has taken."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, _Row] = {}

    def doing(self, what: str, detail: str) -> None:
        with self._lock:
            self._rows.setdefault(what, _Row(detail)).detail = detail

    def done(self, what: str) -> None:
        with self._lock:
            self._rows.pop(what, None)

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(no_wrap=True, justify="right", style="cyan")
        with self._lock:
            for what, row in self._rows.items():
                seconds = round(time.monotonic() - row.since)
                detail = Text(printable(row.detail).replace("\n", " "))
                table.add_row(row.spinner, what, detail, str(timedelta(seconds=seconds)))
        return table


@contextmanager
def tracking() -> Iterator[Tracker]:
    """Follows what is done while the context is open, as it suits where standard error goes."""
    if is_verbose() or not err.is_terminal:
        yield _Lines(0.0 if is_verbose() else EVERY_S)
        return
    rows = _Rows()
    with Live(rows, console=err, refresh_per_second=5, transient=True):
        yield rows


class Counter(Protocol):
    """Takes how many images are done, and of how many in all where that is known."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


@contextmanager
def counted(what: str) -> Iterator[Counter]:
    """A bar on a terminal that vanishes when it is done; in a pipe a line every few seconds."""
    if not err.is_terminal:
        yield _Counted(what)
        return
    with _bar() as bar:
        task = bar.add_task(what, total=None, rate="")
        started = time.monotonic()

        def count(done: int, total: int | None = None) -> None:
            bar.update(task, completed=done, total=total, rate=_rate(done, started))

        yield count


class _Counted:
    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._said = time.monotonic()

    def __call__(self, done: int, total: int | None = None) -> None:
        if not done or time.monotonic() - self._said < EVERY_S:
            return
        self._said = time.monotonic()
        of = f" of {total:,}" if total else ""
        line = f"{self._what}: {done:,}{of} images, {_rate(done, self._started)}"
        err.print(line, highlight=False, markup=False)


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


def _rate(done: int, started: float) -> str:
    return f"{done / max(time.monotonic() - started, 1e-3):,.0f} images/s"


def shortened(text: str, width: int) -> str:
    """The text in a line of at most `width` letters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
