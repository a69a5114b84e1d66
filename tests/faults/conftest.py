"""The fault suite: how many trials, and the table at the end.

`make faults` runs all trials; with the other tests a few of each are run.
"""

import os
from collections.abc import Callable

import pytest

from tests.support.outcome import Outcome, table

FULL = os.environ.get("FAULTS") == "full"
_OUTCOMES: list[Outcome] = []


def trials(all_of_them: int, few: int = 1) -> int:
    """How often a fault is tried."""
    return all_of_them if FULL else few


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
