"""A plugin of pytest that prints a line of JSON for each test as soon as it has ended.

The lines go to standard output; what pytest prints there goes to standard error.
"""

import json
import os
from typing import Any

_LINES = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def pytest_runtest_logreport(report: Any) -> None:
    """Print the line of a test that has ended."""
    if report.when == "call" or report.outcome != "passed":
        line = {
            "test": report.nodeid,
            "when": report.when,
            "status": report.outcome,
            "seconds": report.duration,
            "found": [list(pair) for pair in report.user_properties],
            "said": _reason(report),
        }
        _LINES.write(json.dumps(line, default=str) + "\n")


def _reason(report: Any) -> str:
    """Why a test was skipped or failed, the end of it."""
    if report.outcome == "passed":
        return ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return str(report.longreprtext)[-4000:]
