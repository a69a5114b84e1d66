"""The fault suite: how many trials, and the table at the end.

`make faults` runs all trials; with the other tests each fault is tried once.
"""

import os
from collections.abc import Callable

import pytest

from tests.support.outcome import Outcome, table

FULL = os.environ.get("FAULTS") == "full"
_OUTCOMES: list[Outcome] = []


def trials(full: int) -> int:
    """How often a fault is tried: once, or as often as this by `make faults`."""
    return full if FULL else 1


@pytest.fixture
def outcome(trained: str) -> Callable[[str], Outcome]:
    """Makes a row of the table."""

    def made(fault: str) -> Outcome:
        _OUTCOMES.append(Outcome(fault))
        return _OUTCOMES[-1]

    return made


def pytest_terminal_summary(terminalreporter) -> None:
    if _OUTCOMES:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(_OUTCOMES))
