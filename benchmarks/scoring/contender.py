"""What the harness and a contender say to each other.

A contender is a process of its own, `python -m MODULE JOB.json`: it prepares itself, prints
`ready`, waits for a line on standard input, scores all images, prints a line of JSON with
`seconds` and `images`, and waits for the end of standard input, so that the times of its
processes can still be read. One that has several things to measure goes through this, from the
preparation on, for each of them.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

Run = Callable[[], int]
READY = "ready"


@dataclass(frozen=True)
class Job:
    """What to score, with what, and where the rows go.

    `input_size` is (height, width) in pixels; `threshold` is set for the task `anomaly`;
    `database_url` is one that psycopg2 takes; `table` (SCHEMA.NAME) has the columns uri,
    predicted_class, score, flagged. `turn` counts from 1; `version`, that of the model, differs in
    every pass of a workload. `precision` is that in which Nightscore computes.
    """

    workload: str
    model: str
    night: str
    turn: int
    version: int
    precision: str
    endpoint: str
    key_id: str
    secret: str
    region: str
    bucket: str
    keys: tuple[str, ...]
    program: str
    task: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    threshold: float | None
    database_url: str
    table: str
    cores: int
    device: str

    def write(self, path: Path) -> None:
        """Write it for a contender; only its owner can read it, as it holds secrets."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        """The job that `write` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        for name in ("keys", "classes", "input_size"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def main(*setups: Callable[[Job], Run]) -> None:
    """Take part, once for each of `setups`, one after the other.

    A setup is not timed. The run that it returns is, and returns the number of images.
    """
    # Whatever else is printed must not get between the lines that the harness reads.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = Job.read(Path(sys.argv[-1]))
    for setup in setups:
        run = setup(job)
        print(READY, file=answers)
        sys.stdin.readline()
        started = time.perf_counter()
        images = run()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "images": images}), file=answers)
    sys.stdin.read()
