"""Scoring processes that can be watched and killed: `nightscore score` and the task of a group of
shards, without their start-up."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.night import Night

_REPOSITORY = Path(__file__).parents[2]
# The slow imports come first, so that a kill at a random moment hits the work.
_CODE = """
import json, logging, resource, sys
import ml.registry.programs, ml.report.nightly, ml.scoring.shard, openvino
from ml.registry.client import mlflow_client
from ml.scoring.steps import score_night, score_shards
logging.basicConfig(level="INFO", stream=sys.stderr)
mlflow_client()
most_bytes = int(sys.argv[3])
if most_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps({call}), flush=True)
"""


class Scoring:
    """Scores a night in a process of its own, which imports its modules and then waits for `go`.

    Args:
        variables: variables of its environment, besides those of this process.
        most_bytes: the largest file that it can write, as on a full disk; 0 for no limit.
    """

    def __init__(self, night: Night, most_bytes: int = 0, **variables: str) -> None:
        arguments = [night.stream, night.date.isoformat(), str(most_bytes)]
        self._start(_CODE.replace("{call}", "score_night(*sys.argv[1:3])"), arguments, variables)

    def _start(self, code: str, arguments: list[str], variables: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
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
        """Let it start, as soon as it is ready."""
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
        """Wait for its end and return the value of `score_night`.

        Raises:
            ScoringFailedError: `score_night` raised an error.
        """
        printed, errors = self._process.communicate(timeout=timeout_s)
        if self._process.returncode != 0:
            raise ScoringFailedError(errors)
        counts: dict[str, Any] = json.loads(printed)
        return counts


class GroupScoring(Scoring):
    """Scores a group of a run's shards, as a mapped task of the DAG does."""

    def __init__(self, run_id: str, group: list[int]) -> None:
        call = "score_shards(sys.argv[1], json.loads(sys.argv[2]))"
        self._start(_CODE.replace("{call}", call), [run_id, json.dumps(group), "0"], {})


class ScoringFailedError(Exception):
    """The process ended with an error; the message is what it wrote to standard error."""
