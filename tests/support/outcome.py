"""The table that the fault suite prints, one row per fault."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.evidence import Evidence


@dataclass(repr=False)
class Outcome:
    """The outcome of all trials of a fault.

    `struck` counts the trials in which the fault hit the work: the process was killed before it had
    finished, or a request was answered wrongly.
    """

    fault: str
    trials: int = 0
    struck: int = 0
    images: int = 0
    lost: int = 0
    duplicated: int = 0
    inconsistent: int = 0
    recovery_s: list[float] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def add(self, evidence: Evidence, *, struck: bool = True, counts: bool = True) -> None:
        """Add the evidence of a trial; `counts` is False for evidence from the middle of it."""
        if counts:
            self.trials += 1
            self.struck += struck
            self.images += evidence.images
        self.lost += len(evidence.lost)
        self.duplicated += len(evidence.duplicated)
        self.inconsistent += len(evidence.inconsistent)
        self.findings += [f"lost: {uri} by {model}" for uri, model in evidence.lost]
        self.findings += [f"twice: {uri} by {model}" for uri, model in evidence.duplicated]
        self.findings += evidence.inconsistent

    @contextmanager
    def recovery(self) -> Iterator[None]:
        """Measure the time from the end of the fault until the night is complete."""
        started = time.monotonic()
        yield
        self.recovery_s.append(time.monotonic() - started)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, duplicated or inconsistent, and the fault hit the work."""
        return not self.findings and self.struck > 0

    def __repr__(self) -> str:
        """What a failed assertion shows."""
        lines = self.findings[:20] or ["nothing was found, but the fault hit no trial's work"]
        return "\n".join([self.fault, *lines])


def table(outcomes: list[Outcome]) -> str:
    """All outcomes as text, with their sums."""
    columns = ("trials", "struck", "images", "lost", "duplicated", "inconsistent")
    rows = [[o.fault, *(str(getattr(o, name)) for name in columns), _recovery(o)] for o in outcomes]
    sums = [str(sum(getattr(o, name) for o in outcomes)) for name in columns]
    lines = [["fault", *columns, "recovery (s)"], *rows, ["all", *sums, ""]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _recovery(outcome: Outcome) -> str:
    """The median and the longest recovery, in seconds."""
    if not outcome.recovery_s:
        return "-"
    return f"{statistics.median(outcome.recovery_s):.1f} / {max(outcome.recovery_s):.1f}"
