"""A step of a night, in a process of its own: its time, or what it locks and reads.

`python -m benchmarks.scoring.history_steps STEP JOB.json RUN_ID [inspect] [CORE]` prints a line of
JSON. With CORE the process and its sessions at the server use only that core.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from benchmarks.scoring.contender import Job
from benchmarks.scoring.nightscore import load_program
from ml.database import connection as database
from ml.report import nightly
from ml.scoring.discovery import discover, plan_shards
from ml.scoring.reconciliation import reconcile
from ml.scoring.shard import score_shard

_PARTITION = re.compile(r"_\d{8}$")


class Inspection:
    """The locks and the partitions of this process's statements.

    Attributes:
        locks: the most that a transaction held when it committed.
        partitions: the partitions that the executor was to read, by the plans.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.locks = 0
        self.partitions: set[str] = set()
        sa.event.listen(engine, "commit", self._count_locks)
        sa.event.listen(engine, "before_cursor_execute", self._explain)

    def _count_locks(self, connection: sa.Connection) -> None:
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")
            self.locks = max(self.locks, cursor.fetchone()[0])  # type: ignore[index]

    def _explain(
        self,
        connection: sa.Connection,
        _cursor: Any,
        text: str,
        parameters: Any,
        _context: Any,
        executemany: bool,  # the signature is SQLAlchemy's
    ) -> None:
        words = re.sub(r"--[^\n]*", "", text).split(None, 1)
        if executemany or words[0].upper() not in ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE"):
            return
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute("EXPLAIN (FORMAT JSON) " + text, parameters)
            self._collect(cursor.fetchone()[0][0]["Plan"])  # type: ignore[index]

    def _collect(self, node: dict[str, Any]) -> None:
        if _PARTITION.search(node.get("Relation Name", "")):
            self.partitions.add(node["Relation Name"])
        for child in node.get("Plans", ()):
            self._collect(child)


def pin(engine: sa.Engine, core: int) -> None:
    """Keep this process, and the server's processes of its sessions, on one core."""
    os.sched_setaffinity(0, {core})

    def pin_session(connection: Any, _record: Any) -> None:
        os.sched_setaffinity(connection.get_backend_pid(), {core})

    sa.event.listen(engine, "connect", pin_session)


def _discover(job: Job, run_id: UUID) -> Callable[[], list[float]]:
    def run() -> list[float]:
        discover(run_id)
        plan_shards(run_id)
        return []

    return run


def _score(job: Job, run_id: UUID) -> Callable[[], list[float]]:
    program = load_program(job, version=job.version)

    def run() -> list[float]:
        seconds = []
        for number in plan_shards(run_id):
            started = time.perf_counter()
            score_shard(run_id, number, load=lambda versions: [program])
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def _reconcile(job: Job, run_id: UUID) -> Callable[[], list[float]]:
    def run() -> list[float]:
        reconcile(run_id)
        return []

    return run


def _report(job: Job, run_id: UUID) -> Callable[[], list[float]]:
    def run() -> list[float]:
        nightly.write(run_id)
        return []

    return run


def _night(job: Job, run_id: UUID) -> Callable[[], list[float]]:
    score = _score(job, run_id)

    def run() -> list[float]:
        discover(run_id)
        seconds = score()
        reconcile(run_id)
        return seconds

    return run


STEPS = {"discover": _discover, "shards": _score, "reconcile": _reconcile, "report": _report}


def main() -> None:
    """Run the step and print what it took."""
    step, path, run_id, *more = sys.argv[1:]
    engine = database.engine()
    engine.dispose()
    if cores := [int(word) for word in more if word.isdecimal()]:
        pin(engine, cores[0])
    inspection = Inspection(engine) if "inspect" in more else None
    run = (STEPS | {"night": _night})[step](Job.read(Path(path)), UUID(run_id))
    started = time.perf_counter()
    parts = run()
    figures: dict[str, Any] = {"seconds": time.perf_counter() - started, "parts": parts}
    if inspection:
        figures |= {"locks": inspection.locks, "partitions": len(inspection.partitions)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
