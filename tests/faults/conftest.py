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
    """The number of trials of a fault: `full` in `make faults`, otherwise 1."""
    return full if FULL else 1


@pytest.fixture
def outcome(trained: str) -> Callable[[str], Outcome]:
    """A function that adds a row to the table; the models of the nights are trained."""
    return add_outcome


def add_outcome(fault: str) -> Outcome:
    """Add a row to the table."""
    _OUTCOMES.append(Outcome(fault))
    return _OUTCOMES[-1]


def pytest_terminal_summary(terminalreporter) -> None:
    if _OUTCOMES:
        terminalreporter.section("faults")
        terminalreporter.write_line(table(_OUTCOMES))
