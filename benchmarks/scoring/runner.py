"""One pass of a contender: a fresh process, measured from outside while it scores."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.errors import ContenderError
from benchmarks.paths import REPOSITORY
from benchmarks.scoring.processes import GpuUse, PeakMemory, cpu_seconds, end, marked, tree

MARKER = "NIGHTSCORE_BENCHMARK"
LONGEST_S = 3600
_LINES_OF_LOG = 30


@dataclass(frozen=True)
class Pass:
    """What a pass took.

    CPU seconds are those of its own processes and of the servers that it used, the peak of memory
    that of its own processes, in MB. On a GPU: how busy it was, in percent, and the most of its
    memory that was in use, in MB (`benchmarks.scoring.processes.GpuUse`).
    """

    images: int
    seconds: float
    own_cpu_seconds: float
    servers_cpu_seconds: float
    peak_memory_mb: float
    gpu_busy: float | None
    gpu_memory_mb: float | None = None

    @property
    def rate(self) -> float:
        """Images per second; 0 for a stage that has nothing to do."""
        return self.images / self.seconds if self.images else 0.0

    @property
    def cpu_seconds_per_1000(self) -> float:
        """CPU seconds of all processes for 1,000 images."""
        total = self.own_cpu_seconds + self.servers_cpu_seconds
        return 1000 * total / self.images if self.images else 0.0


def run_pass(
    arguments: Sequence[str], job: Path, servers: Sequence[psutil.Process], device: str
) -> Pass:
    """`run_passes` of a process that makes one, in an hour at most."""
    return run_passes(arguments, job, servers, device, count=1)[0]


def run_passes(
    arguments: Sequence[str],
    job: Path,
    servers: Sequence[psutil.Process],
    device: str,
    *,
    count: int,
    longest: float = LONGEST_S,
) -> list[Pass]:
    """Run `python -m ARGUMENTS JOB`, which makes `count` passes, each from setup to result.

    Raises:
        ContenderError: it failed, or was silent for `longest` seconds. Nothing of it is left
            running.
    """
    log = job.with_suffix(".log")
    mark = str(job)
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments, str(job)],
            cwd=REPOSITORY,
            env=os.environ | {MARKER: mark, "PYTHONFAULTHANDLER": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    answers = _Answers(process, log)
    own = psutil.Process(process.pid)
    try:
        passes = [_pass(answers, servers, device, longest) for _ in range(count)]
        left = tree(own)
        process.communicate(timeout=120)
        end(left, wait_s=30)
        if process.returncode != 0:
            raise ContenderError(_failure(process, log))
    finally:
        process.kill()
        process.wait()
        end(marked(MARKER, mark), wait_s=0)
    return passes


def _pass(
    answers: "_Answers", servers: Sequence[psutil.Process], device: str, longest: float
) -> Pass:
    """Wait until the process is ready, and measure what it does then."""
    own = psutil.Process(answers.process.pid)
    answers.next(longest)
    before, at_servers = cpu_seconds([own]), cpu_seconds(servers)
    with PeakMemory(own) as peak, GpuUse(device) as gpu:
        answers.go()
        answer = json.loads(answers.next(longest))
        after, at_servers_after = cpu_seconds([own]), cpu_seconds(servers)
    return Pass(
        answer["images"],
        answer["seconds"],
        after - before,
        at_servers_after - at_servers,
        peak.mb,
        gpu.busy,
        gpu.memory_mb,
    )


class _Answers:
    """The lines that a contender prints, of which several may come at once."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log
        self._rest = b""

    def next(self, longest: float) -> bytes:
        """The next line; ContenderError when none comes for `longest` seconds."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            # Not `readline`: `select` does not see the lines that it has read ahead.
            ready, _, _ = select.select([self.process.stdout], [], [], longest)
            found = os.read(self.process.stdout.fileno(), 2**16) if ready else b""
            if not found:
                raise ContenderError(_failure(self.process, self._log))
            self._rest += found
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def go(self) -> None:
        """Let it score."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended is noticed by `next`
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()


def _failure(process: "subprocess.Popen[bytes]", log: Path) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_OF_LOG:]
    state = "does not answer" if process.poll() is None else f"ended with {process.returncode}"
    return f"{log.stem} {state}. It said last:\n" + "\n".join(said)
