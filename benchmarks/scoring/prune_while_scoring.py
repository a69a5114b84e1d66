"""What pruning a history costs the night that is scored meanwhile.

Two streams have so many nights behind them. Nights are scored alone, then while `nightscore prune`
deletes the history: of one stream all, of the other three quarters, so that partitions go whole and
rows go in batches. A watcher asks which sessions of the night wait for a lock, and for how long.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.paths import REPOSITORY
from benchmarks.scoring.growth import bucket
from benchmarks.scoring.history import FIRST, STREAMS, Site, sites
from benchmarks.scoring.history_steps import STEPS

TARGET_S = 1.0
IMAGES, HISTORY_IMAGES = 5000, 2000
NIGHTS_ALONE = 4
_EVERY_S = 0.005
# The maintainer's own sessions are not counted. What others run, only a superuser sees.
_WAITING = """
SELECT locks.pid
FROM pg_locks AS locks
JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
WHERE NOT locks.granted AND activity.usename = 'nightscore_writer'
"""


class LockWatch(threading.Thread):
    """Asks, again and again, which sessions of the night wait for a lock.

    Attributes:
        longest_s: the longest wait, in seconds; waits shorter than 5 ms may be missed.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(daemon=True)
        self.longest_s = 0.0
        self._session = site.connect()
        self._ended = threading.Event()

    def run(self) -> None:
        """Ask until `stop`."""
        since: dict[int, float] = {}
        with self._session.cursor() as cursor:
            while not self._ended.wait(_EVERY_S):
                cursor.execute(_WAITING)
                now = time.perf_counter()
                since = {pid: since.get(pid, now) for (pid,) in cursor}
                waits = [now - begun for begun in since.values()]
                self.longest_s = max(self.longest_s, *waits, 0.0)

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join()
        self._session.close()


def _score_night(site: Site, turn: int) -> dict[str, Any]:
    """Score a night of the first stream, step by step; returns step → seconds."""
    run_id = site.open_run(STREAMS[0], FIRST + timedelta(days=turn), IMAGES)
    return {step: site.step(step, run_id)["seconds"] for step in STEPS}


def _set_limits(nights: int) -> None:
    """Keep five nights of one stream before the first that is scored, of the other a quarter."""
    path = Path(os.environ["NIGHTSCORE_CONFIG"])
    document = json.loads(path.read_text(encoding="utf-8"))
    today = datetime.now(UTC).date()
    for stream, kept in zip(STREAMS, (5, nights // 4), strict=True):
        limit = (today - FIRST).days + kept
        document["streams"][stream]["retention"] = {"results": limit}
    path.write_text(json.dumps(document), encoding="utf-8")


def _start_prune(site: Site, output: Any) -> "subprocess.Popen[str]":
    command = (
        "import sys; sys.argv[1:] = ['prune', '--delete', '--json']; import ml.cli; ml.cli.main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=REPOSITORY,
        env=os.environ | {"NIGHTSCORE_HOME": str(site.home)},
        stdout=output,
        text=True,
    )


def _measure(site: Site, nights: int, output: Path) -> str:
    alone = [_score_night(site, turn) for turn in range(NIGHTS_ALONE)]
    _set_limits(nights)
    watch, beside = LockWatch(site), []
    watch.start()
    started = time.perf_counter()
    with output.open("w") as file:
        process = _start_prune(site, file)
        while process.poll() is None:
            beside.append(_score_night(site, NIGHTS_ALONE + len(beside)))
    seconds = time.perf_counter() - started
    watch.stop()
    deletions = json.loads(output.read_text())["candidates"]
    states = {state: sum(d["state"] == state for d in deletions) for state in ("deleted", "kept")}
    _require_complete(site, nights, deletions)
    lines = [f"{'step':10}  {'alone, s':>9}  {'beside a prune, s':>18}  {'longest, s':>10}"]
    for step in STEPS:
        one, other = ([night[step] for night in part] for part in (alone, beside))
        lines.append(
            f"{step:10}  {statistics.median(one):>9.2f}  {statistics.median(other):>18.2f}  "
            f"{max(other):>10.2f}"
        )
    return "\n".join(
        [
            *lines,
            f"{nights} nights of {len(STREAMS)} streams, {HISTORY_IMAGES:,} images each: "
            f"{states['deleted']} deletions, {states['kept']} kept, in at most {seconds:.0f} s, "
            f"while {len(beside)} nights of {IMAGES:,} images were scored.",
            f"The longest that the night waited for a lock: {watch.longest_s:.3f} s "
            f"(target {TARGET_S:g} s).",
        ]
    )


def _require_complete(site: Site, nights: int, deletions: list[dict[str, Any]]) -> None:
    """Check that all went that had passed, and nothing else."""
    if failed := [d for d in deletions if d["state"] == "failed"]:
        raise SystemExit(f"{len(failed)} deletions failed, first {failed[0]}")
    session: psycopg2.extensions.connection = site.connect()
    cursor = session.cursor()
    for stream, kept in zip(STREAMS, (5, nights // 4), strict=True):
        cursor.execute(
            "SELECT min(night) FROM nightscore.image WHERE stream = %s AND night < %s",
            (stream, FIRST),
        )
        row = cursor.fetchone()
        if row is None or row[0] != FIRST - timedelta(days=kept):
            raise SystemExit(f"The first night of {stream} that is left is {row}.")
    session.close()


def main(nights: int) -> None:
    """Measure, and print the table.

    Args:
        nights: of history.
    """
    with (
        tempfile.TemporaryDirectory(prefix="nightscore-prune-") as name,
        bucket(IMAGES, any_night=True) as endpoint,
        sites((nights,), IMAGES, HISTORY_IMAGES, endpoint, Path(name)) as found,
    ):
        print(_measure(found[0], nights, Path(name) / "prune.json"), flush=True)
