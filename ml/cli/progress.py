"""The progress of long work: live on a terminal, a line now and then in a pipe."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ml.cli.console import err, printable
from ml.cli.logs import is_verbose

if TYPE_CHECKING:
    from ml.stack.progress import Progress

EVERY_S = 15.0
WIDTH = 100  # of a line in a pipe or a file


class _Clock:
    """What both forms of progress share: a clock, a lock, and lines that stay."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def elapsed(self) -> str:
        return str(timedelta(seconds=round(time.monotonic() - self._started)))

    def message(self, line: str) -> None:
        err.print(f"{self.elapsed()}  {line}", highlight=False, markup=False)


class _Lines(_Clock):
    """Progress in a pipe: a line when a task begins, then one every few seconds if it changes."""

    def __init__(self, every_s: float) -> None:
        super().__init__()
        self._every_s = every_s
        self._statuses: dict[str, str] = {}
        # Task → when its last line was printed, and the status in it.
        self._printed: dict[str, tuple[float, str]] = {}

    def update(self, task: str, status: str) -> None:
        with self._lock:
            self._statuses[task] = status
            lines = self._due_lines(time.monotonic())
        for line in lines:
            self.message(shorten(line, WIDTH - len(self.elapsed()) - 2))

    def _due_lines(self, now: float) -> list[str]:
        """The lines to print now, for all tasks.

        A status that came too soon after the last line, such as that of a wait, is printed later if
        it still lasts.
        """
        lines = []
        for task, status in self._statuses.items():
            printed_at, printed_status = self._printed.get(task, (float("-inf"), ""))
            if status != printed_status and now - printed_at >= self._every_s:
                self._printed[task] = now, status
                lines.append(f"{task}: {status}")
        return lines

    def finish(self, task: str) -> None:
        with self._lock:
            self._statuses.pop(task, None)
            self._printed.pop(task, None)


@dataclass
class _Row:
    status: str
    started: float = field(default_factory=time.monotonic)
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="cyan"))


class _Rows(_Clock):
    """Progress on a terminal: a row per task, with the time that it has taken."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, _Row] = {}

    def update(self, task: str, status: str) -> None:
        with self._lock:
            self._rows.setdefault(task, _Row(status)).status = status

    def finish(self, task: str) -> None:
        with self._lock:
            self._rows.pop(task, None)

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(no_wrap=True, justify="right", style="cyan")
        with self._lock:
            for task, row in self._rows.items():
                seconds = round(time.monotonic() - row.started)
                status = Text(printable(row.status).replace("\n", " "))
                table.add_row(row.spinner, task, status, str(timedelta(seconds=seconds)))
        return table


@contextmanager
def show_progress() -> Iterator["Progress"]:
    """Show the progress of tasks on standard error while the context is open.

    Yields:
        What the tasks report to.
    """
    if is_verbose() or not err.is_terminal:
        yield _Lines(0.0 if is_verbose() else EVERY_S)
        return
    rows = _Rows()
    with Live(rows, console=err, refresh_per_second=5, transient=True):
        yield rows


class OnCount(Protocol):
    """Takes the number of images done, and the number in all where that is known."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """Show the numbers."""


@contextmanager
def count_images(label: str) -> Iterator[OnCount]:
    """Show how many images are done: a bar on a terminal, a line every few seconds in a pipe.

    Args:
        label: what is done, such as "scoring spill".

    Yields:
        A function that is called with the numbers.
    """
    if not err.is_terminal:
        yield _CountLines(label)
        return
    with _bar() as bar:
        task = bar.add_task(label, total=None, rate="")
        started = time.monotonic()

        def update(done: int, total: int | None = None) -> None:
            bar.update(task, completed=done, total=total, rate=_rate(done, started))

        yield update


class _CountLines:
    def __init__(self, label: str) -> None:
        self._label = label
        self._started = self._printed_at = time.monotonic()

    def __call__(self, done: int, total: int | None = None) -> None:
        if not done or time.monotonic() - self._printed_at < EVERY_S:
            return
        self._printed_at = time.monotonic()
        of_total = f" of {total:,}" if total else ""
        line = f"{self._label}: {done:,}{of_total} images, {_rate(done, self._started)}"
        err.print(line, highlight=False, markup=False)


def _bar() -> Bar:
    return Bar(
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


def shorten(text: str, width: int) -> str:
    """Return the text on one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
