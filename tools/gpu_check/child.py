"""A process of a step: it ends in time, and what it reports is heard line by line."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.gpu_check.layout import REPOSITORY

# How long a process may take to put away what it started once it is asked to end.
GRACE_S = 15.0
_POLL_S = 0.25


def run(
    command: Sequence[str],
    variables: Mapping[str, str],
    log: Path,
    deadline: float,
    on_line: Callable[[str], None] = lambda line: None,
    on_poll: Callable[[], None] = lambda: None,
) -> int | None:
    """Run a command in the repository; returns its exit status, None when it was stopped.

    Args:
        command: the program and its arguments.
        variables: of the environment, beside those of this process.
        log: the file that standard error is appended to.
        deadline: by `time.monotonic()`; the command is then asked to end, and killed after
            `GRACE_S`.
        on_line: called with each line of standard output.
        on_poll: called a few times per second.
    """
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        in_time = _listen(process, deadline, on_line, on_poll)
    finally:
        _end(process)
    on_poll()
    return process.returncode if in_time else None


def _listen(
    process: "subprocess.Popen[bytes]",
    deadline: float,
    on_line: Callable[[str], None],
    on_poll: Callable[[], None],
) -> bool:
    """Whether the process ended by itself before the deadline."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if selector.select(min(left, _POLL_S)):
                found = process.stdout.read(2**16)
                *lines, rest = (rest + (found or b"")).split(b"\n")
                for line in lines:
                    on_line(line.decode(errors="replace"))
                if found == b"":
                    selector.unregister(process.stdout)
                    return _ended(process, deadline)
            on_poll()


def _ended(process: "subprocess.Popen[bytes]", deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the process to end, so that it stops its servers; kill what is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
