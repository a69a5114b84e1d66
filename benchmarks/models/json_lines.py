"""What was measured as lines of JSON, each as soon as it is there."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def print_lines(measure: Callable[[Path], Iterable[dict[str, Any]]]) -> None:
    """Print what `measure` yields; it is called with a folder that is removed in the end.

    Settings of Nightscore in the environment, other than the device, do not count.
    """
    for name in list(os.environ):
        if name.startswith("NIGHTSCORE_") and name != "NIGHTSCORE_DEVICE":
            del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="nightscore-models-") as folder:
        for line in measure(Path(folder)):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
