"""A scoring process that can be watched and killed: `nightscore score`, without its start-up."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.night import Night

_REPOSITORY = Path(__file__).parents[2]
# What takes most of the start is imported first, so that a kill at a random moment meets the work.
_CODE = """
import json, logging, resource, sys
import ml.registry.programs, ml.report.nightly, ml.scoring.shard, openvino
from ml.registry.client import mlflow_client
from ml.scoring.steps import score_night
logging.basicConfig(level="INFO", stream=sys.stderr)
mlflow_client()
most_bytes = int(sys.argv[3])
if most_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(score_night(sys.argv[1], sys.argv[2])), flush=True)
"""


class Scoring:
    """Scores a night in a process of its own, which imports what it needs and waits for `go`.

    Args:
        variables: of the environment, beside those of this process.
        most_bytes: the largest file that it can write, as on a full disk; 0: any.
    """

    def __init__(self, night: Night, most_bytes: int = 0, **variables: str) -> None:
        arguments = [night.stream, night.date.isoformat(), str(most_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, *arguments],
            env=os.environ | variables,
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def go(self) -> None:
        """Let it begin, as soon as it is ready."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise AssertionError(self._process.communicate()[1])
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def finish(self, timeout_s: float = 300) -> dict[str, Any]:
        """Wait for its end; returns what `score_night` returned, raises ScoringFailedError for an error."""
        printed, errors = self._process.communicate(timeout=timeout_s)
        if self._process.returncode != 0:
            raise ScoringFailedError(errors)
        found: dict[str, Any] = json.loads(printed)
        return found


class ScoringFailedError(Exception):
    """The process ended with an error; its text is what it wrote to standard error."""
