"""The hostile-input run: thousands of files through the engine, and the figures of what became of
them. `make hostile` runs it; so does the test beside it.
"""

import argparse
import json
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.hostile.child import programs
from tests.hostile.corpus import Input, corpus

# CPU time, since others may use the machine; and the clock, for what sleeps or waits for itself.
HANG_CPU_S, HANG_WALL_S = 5.0, 300.0
START_WITHIN_S = 600.0
# Above what the child holds before the first file. At the limit of 64 million pixels the dearest
# image, a WebP, takes 19 bytes a pixel: two canvases, the decoded frame, Pillow's and the array.
MOST_BYTES = 19 * 64_000_000 + 200 * 2**20
# Small files are scored together, as in a night; one that is large, or a bomb, by itself.
TOGETHER, SMALL_BYTES = 50, 2**20


@dataclass
class Figures:
    """What became of the inputs, by mutation and by reason ("" for scored)."""

    tried: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    start_bytes: int = 0
    peak_bytes: int = 0
    wall_s: float = 0.0


class Child:
    """A process of `tests.hostile.child`, asked for some files at a time."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.child", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.start_bytes = self.answer(START_WITHIN_S)["peak"]

    def ask(self, files: Sequence[Input]) -> None:
        assert self.process.stdin is not None
        head = json.dumps([(file.name, len(file.content)) for file in files]).encode()
        self.process.stdin.write(head + b"\n" + b"".join(file.content for file in files))
        self.process.stdin.flush()

    def answer(self, within_s: float) -> dict:
        """Raises TimeoutError when there is none, EOFError when the process has ended."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], within_s)[0]:
            raise TimeoutError
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"exit status {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Run:
    """Has files scored by a child, with the programs of a folder; those that fail, crash or hang
    are kept in the folder `keep`."""

    def __init__(self, folder: Path, keep: Path) -> None:
        self.folder, self.keep = folder, keep
        self.figures = Figures()
        self.child = Child(folder)
        self.figures.start_bytes = self.child.start_bytes

    def all(self, files: Iterable[Input]) -> Figures:
        begun = time.monotonic()
        for group in groups(files):
            if not self._went_well(group):
                # Which of them was it?
                for file in group:
                    self._went_well([file])
        self.child.end()
        self.figures.wall_s = time.monotonic() - begun
        return self.figures

    def _went_well(self, group: Sequence[Input]) -> bool:
        """False for a group of several files in which something is wrong; nothing is counted."""
        figures, last = self.figures, group[-1]
        what = f"{last.mutation} of {last.base} ({len(last.content)} bytes)"
        found: list[str] | None = None
        try:
            self.child.ask(group)
            answer = self.child.answer(HANG_WALL_S)
            detail = answer.get("failure", "")
            found = figures.failures if detail else None
            if answer["cpu_s"] > HANG_CPU_S:
                found, detail = figures.hangs, f"{answer['cpu_s']:.1f} s"
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            found = figures.hangs if isinstance(error, TimeoutError) else figures.crashes
            detail, answer = str(error), {}
            self.child.end()
            self.child = Child(self.folder)
        if found is not None and len(group) > 1:
            return False
        figures.tried += len(group)
        figures.peak_bytes = max(figures.peak_bytes, answer.get("peak", 0))
        if found is not None:
            found.append(f"{what}: {detail}, kept as {_kept(last, self.keep)}")
            return True
        if answer["cpu_s"] > figures.slowest_s:
            figures.slowest_s = answer["cpu_s"]
            figures.slowest = what if len(group) == 1 else f"{len(group)} small files together"
        for file, (reason, _) in zip(group, answer["outcomes"], strict=True):
            figures.outcomes[file.mutation, reason] += 1
        return True


def groups(files: Iterable[Input]) -> Iterator[list[Input]]:
    waiting: list[Input] = []
    for file in files:
        if file.mutation == "bomb" or len(file.content) > SMALL_BYTES:
            yield [file]
            continue
        waiting.append(file)
        if len(waiting) == TOGETHER:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _kept(file: Input, keep: Path) -> Path:
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / Path(file.name).name
    path.write_bytes(file.content)
    return path


def table(figures: Figures) -> Table:
    reasons = sorted({reason for _, reason in figures.outcomes if reason})
    shown = Table("mutation", "inputs", "scored", *reasons)
    for column in shown.columns[1:]:
        column.justify = "right"
    mutations = sorted({mutation for mutation, _ in figures.outcomes})
    for mutation in mutations:
        counts = [figures.outcomes[mutation, reason] for reason in ("", *reasons)]
        shown.add_row(mutation, *(f"{count:,}" for count in (sum(counts), *counts)))
    totals = [sum(figures.outcomes[m, reason] for m in mutations) for reason in ("", *reasons)]
    shown.add_section()
    shown.add_row("all", *(f"{count:,}" for count in (sum(totals), *totals)))
    return shown


def lines(figures: Figures) -> str:
    scored = sum(count for (_, reason), count in figures.outcomes.items() if not reason)
    return "\n".join(
        [
            f"inputs tried   {figures.tried:,}, each twice, in {figures.wall_s:.0f} s",
            f"scored         {scored:,}",
            f"rejected       {figures.outcomes.total() - scored:,}",
            f"failures       {len(figures.failures)}: other errors, another decision on a retry",
            f"crashes        {len(figures.crashes)}",
            f"hangs          {len(figures.hangs)}: more than {HANG_CPU_S:.0f} s of CPU time",
            f"slowest        {figures.slowest_s:.2f} s of CPU time, {figures.slowest}",
            f"peak memory    {figures.peak_bytes / 1e6:,.0f} MB, {figures.start_bytes / 1e6:,.0f} MB "
            f"of it before the first input; limit {(figures.start_bytes + MOST_BYTES) / 1e6:,.0f} MB",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(".nightscore/hostile"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs(folder)
        figures = Run(folder, options.keep).all(corpus(options.seed, options.inputs))
    console = Console(width=150)
    console.print(table(figures))
    console.print(lines(figures), highlight=False)
    bad = figures.failures + figures.crashes + figures.hangs
    for text in bad:
        console.print(text, markup=False)
    within = figures.peak_bytes <= figures.start_bytes + MOST_BYTES
    sys.exit(0 if not bad and within else 1)


if __name__ == "__main__":
    main()
