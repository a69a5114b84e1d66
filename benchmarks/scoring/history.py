"""What a history costs a night: the same nights with nothing before them and with many nights.

Two new Postgres servers hold the same nights, but one has a history of so many nights of two
streams behind them, written by set-based SQL. The nights that a run looks back on are in both: 0
nights of history are those and nothing older. Each night is scored on both, one after the other, in
processes of their own, and the order changes with each night. The last night is not timed: there
each step's locks are counted before its transactions commit, and its plans are read.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg2
from psycopg2 import extensions

from benchmarks import machine
from benchmarks.paths import REPOSITORY
from benchmarks.scoring import workloads
from benchmarks.scoring.contender import Job
from benchmarks.scoring.history_steps import STEPS
from benchmarks.scoring.synthetic_bucket import DISTINCT
from benchmarks.scoring.workloads import STORAGE, WORKLOADS
from ml.settings import settings
from ml.stack.local import LocalStack

TARGET = 1.2
LOOKBACK = 3
FIRST = date(2026, 1, 10)  # the first night that is scored
STREAMS = ("spill", "cifar10")
SHARDS = 5  # of a night
_VERSION = 1

_MODEL = """
INSERT INTO nightscore.model_version (
    model, version, task, mlflow_run_id, program_sha256, snapshot_uri, metrics, threshold, classes,
    reference_edges, reference_shares, synthetic, gate_passed, gate_reason
)
VALUES (
    %(model)s, 1, %(task)s, 'none', 'none', 's3://none', '{}', %(threshold)s, %(classes)s,
    ARRAY[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], array_fill(0.1::float8, ARRAY[10]),
    true, true, 'made for a measurement'
);
INSERT INTO nightscore.model_alias (model, alias, version) VALUES (%(model)s, 'champion', 1)
"""
_RUN = """
INSERT INTO nightscore.scoring_run (
    run_id, trigger, stream, night, status, lookback_from, max_rejected_share, shard_size,
    opened_at, finished_at, discovered, scored, rejected, anomalies
)
VALUES (
    %(run)s, %(run)s, %(stream)s, %(night)s, %(status)s, %(night)s::date - %(lookback)s, 0.5,
    %(shard_size)s,
    CASE WHEN %(status)s = 'open' THEN now() ELSE %(night)s::timestamptz END,
    CASE WHEN %(status)s <> 'open' THEN %(night)s::timestamptz END,
    %(images)s, %(images)s, 0, 0
);
INSERT INTO nightscore.scoring_run_model (run_id, model, version) VALUES (%(run)s, %(model)s, 1)
"""
_RESULTS = (
    "SELECT nightscore.ensure_night(%(night)s)",
    """
    INSERT INTO nightscore.shard (
        run_id, number, images, started_at, finished_at, attempts, engine_images, engine_seconds,
        device
    )
    VALUES (%(run)s, 0, %(images)s, %(night)s, %(night)s, 1, %(images)s, 1, 'cpu')
    """,
    """
    INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified)
    SELECT %(night)s, %(stream)s, %(folder)s || lpad(i::text, 8, '0') || '.jpg',
        (%(etags)s)[i %% array_length(%(etags)s, 1) + 1], 2000, %(night)s
    FROM generate_series(0, %(images)s - 1) AS i
    """,
    """
    INSERT INTO nightscore.manifest (run_id, night, image_id, shard)
    SELECT %(run)s, night, image_id, 0 FROM nightscore.image
    WHERE night = %(night)s AND stream = %(stream)s
    """,
    """
    INSERT INTO nightscore.prediction (
        night, image_id, model, version, run_id, predicted_class, confidence, score, threshold,
        flagged
    )
    SELECT night, image_id, %(model)s, 1, %(run)s, 'normal', random(), random(), 0.99,
        image_id %% 100 = 1
    FROM nightscore.image
    WHERE night = %(night)s AND stream = %(stream)s AND image_id %% 200 <> 0
    """,
    """
    INSERT INTO nightscore.rejection (night, image_id, model, version, run_id, reason)
    SELECT night, image_id, %(model)s, 1, %(run)s, 'undecodable'
    FROM nightscore.image
    WHERE night = %(night)s AND stream = %(stream)s AND image_id %% 200 = 0
    """,
)


@dataclass(frozen=True)
class Site:
    """A stack's Postgres with so many nights of history.

    Attributes:
        nights: how many nights of history are older than those that a run looks back on.
        home: its state folder.
        job: what its steps are told.
    """

    nights: int
    home: Path
    job: Job

    def connect(self) -> extensions.connection:
        """A session of the owner, in which each statement is a transaction."""
        session = psycopg2.connect(self.job.database_url)
        session.autocommit = True
        return session

    def make_partitions(self, night: date) -> None:
        """Make the partitions of the nights of a run ahead, as the DAG `maintain` does."""
        session = self.connect()
        for days in range(LOOKBACK + 1):
            made_ahead = {"night": night - timedelta(days=days)}
            session.cursor().execute("SELECT nightscore.ensure_night(%(night)s)", made_ahead)
        session.close()

    def open_run(self, stream: str, night: date, images: int) -> UUID:
        """A run of a night that has no row yet."""
        run_id = uuid4()
        values = _values(stream, night, images) | {"run": str(run_id), "status": "open"}
        session = self.connect()
        session.cursor().execute(_RUN, values)
        session.close()
        return run_id

    def step(self, step: str, run_id: UUID, *more: str, endpoint: str = "") -> dict[str, Any]:
        """Run a step; returns what it printed."""
        return finish(self.start(step, run_id, *more, endpoint=endpoint))

    def start(
        self, step: str, run_id: UUID, *more: str, endpoint: str = ""
    ) -> "subprocess.Popen[str]":
        """Start a step's process."""
        path = self.home.parent / f"job-{self.nights}.json"
        self.job.write(path)
        environment = os.environ | {"NIGHTSCORE_HOME": str(self.home)}
        if endpoint:
            environment["AWS_ENDPOINT_URL"] = endpoint
        module = "benchmarks.scoring.history_steps"
        return subprocess.Popen(
            [sys.executable, "-m", module, step, str(path), str(run_id), *more],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a step; returns what it printed."""
    answer, _ = process.communicate(timeout=3600)
    if process.returncode:
        raise SystemExit("A step failed: see above.")
    document: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return document


def _values(stream: str, night: date, images: int) -> dict[str, Any]:
    return {
        "stream": stream,
        "night": night,
        "model": WORKLOADS[stream].model,
        "images": images,
        "lookback": LOOKBACK,
        "shard_size": -(-images // SHARDS),
        "folder": f"{STORAGE}/streams/{stream}/dt={night}/",
    }


def fill(site: Site, images: int, history_images: int, etags: Sequence[str]) -> None:
    """Write the models, the history, and the nights that the first run looks back on."""
    session = site.connect()
    cursor = session.cursor()
    for stream in STREAMS:
        workload = WORKLOADS[stream]
        cursor.execute(
            _MODEL,
            {
                "model": workload.model,
                "task": workload.task,
                "classes": list(workload.classes),
                "threshold": 0.99 if workload.task == "anomaly" else None,
            },
        )
    started = time.perf_counter()
    for number in range(site.nights + LOOKBACK, 0, -1):
        night = FIRST - timedelta(days=number)
        count = images if number <= LOOKBACK else history_images
        for stream in STREAMS:
            values = _values(stream, night, count) | {
                "run": str(uuid4()), "status": "finished", "etags": list(etags)
            }  # fmt: skip
            for text in (_RUN, *_RESULTS):
                cursor.execute(text, values)
        if number % 100 == 0:
            print(f"  {number} nights to write", file=sys.stderr, flush=True)
    cursor.execute("VACUUM ANALYZE")
    session.close()
    seconds = time.perf_counter() - started
    print(
        f"{site.nights} nights of history: written in {seconds:.0f} s", file=sys.stderr, flush=True
    )


@contextmanager
def sites(
    histories: Sequence[int], images: int, history_images: int, endpoint: str, folder: Path
) -> Iterator[list[Site]]:
    """A stack for each history, filled."""
    # Not at the top: it imports this module.
    from benchmarks.scoring.growth import make_job

    configuration = folder / "nightscore.yaml"
    workloads.write_configuration(configuration)
    document = json.loads(configuration.read_text(encoding="utf-8"))
    for stream in document["streams"].values():
        stream["lookback_nights"] = LOOKBACK
    configuration.write_text(json.dumps(document), encoding="utf-8")
    os.environ["NIGHTSCORE_CONFIG"] = str(configuration)
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    etags = _etags()
    with ExitStack() as stacks:
        servers = []
        for nights in histories:
            home = folder / f"stack-{nights}"
            os.environ["NIGHTSCORE_HOME"] = str(home)
            settings.cache_clear()
            stack = LocalStack(home)
            stacks.callback(stack.down)
            stack.up(("postgres",))
            settings.cache_clear()
            job = replace(make_job(folder), night=FIRST.isoformat(), version=_VERSION)
            servers.append(Site(nights, home, job))
        for site in servers:
            fill(site, images, history_images, etags)
        yield servers


def _etags() -> list[str]:
    import hashlib

    contents = workloads.draw_images("spill", DISTINCT)
    return [hashlib.md5(content, usedforsecurity=False).hexdigest() for content in contents]


def measure(
    servers: Sequence[Site], images: int, repeat: int
) -> dict[int, dict[str, dict[str, Any]]]:
    """Nights of history → step → `seconds` of each night, `locks`, `partitions`."""
    figures: dict[int, dict[str, dict[str, Any]]] = {
        site.nights: {step: {"seconds": []} for step in STEPS} for site in servers
    }
    for turn in range(repeat + 1):
        night = FIRST + timedelta(days=turn)
        in_turn = servers if turn % 2 else list(reversed(servers))
        for site in in_turn:
            run_id = site.open_run("spill", night, images)
            for step in STEPS:
                more = ["inspect"] if turn == repeat else []
                done = site.step(step, run_id, *more)
                figure = figures[site.nights][step]
                if turn == repeat:
                    figure |= {"locks": done["locks"], "partitions": done["partitions"]}
                else:
                    figure["seconds"] += done["parts"] or [done["seconds"]]
            _require_complete(site, run_id, images)
        print(f"  night {turn + 1} of {repeat + 1}", file=sys.stderr, flush=True)
    return figures


def _require_complete(site: Site, run_id: UUID, images: int) -> None:
    session = site.connect()
    cursor = session.cursor()
    cursor.execute(
        "SELECT discovered, scored, status FROM nightscore.scoring_run WHERE run_id = %s",
        (str(run_id),),
    )
    row = cursor.fetchone()
    session.close()
    if row != (images, images, "finished"):
        raise SystemExit(f"{images} images were to be scored: {row}.")


def table(figures: dict[int, dict[str, dict[str, Any]]]) -> str:
    """The figures side by side, and how many times the first the last is."""
    lines = [
        f"{'step':10}  {'history':>7}  {'seconds (median, least to most)':>34}  {'locks':>7}  "
        f"{'partitions':>10}  {'times':>6}"
    ]
    first = next(iter(figures.values()))
    for step in STEPS:
        for nights, steps in figures.items():
            one = steps[step]
            middle = statistics.median(one["seconds"])
            ratio = middle / statistics.median(first[step]["seconds"])
            spread = f"{middle:.3f} ({min(one['seconds']):.3f} to {max(one['seconds']):.3f})"
            verdict = "" if steps is first else f"{ratio:>6.2f}"
            lines.append(
                f"{'a shard' if step == 'shards' else step:10}  {nights:>7,}  {spread:>34}  "
                f"{one['locks']:>7,}  {one['partitions']:>10}  {verdict:>6}"
            )
    return "\n".join([*lines, f"The target is {TARGET} times."])


def discover_at_once(
    site: Site, images: int, repeat: int, endpoints: Sequence[str]
) -> list[dict[str, Any]]:
    """Discovery of each stream alone and beside the other, each on a core of its own.

    Step, sessions at the server and bucket of a stream share its core. The partitions are there.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < len(STREAMS):
        raise SystemExit(
            f"{len(STREAMS)} streams need a core each: this machine lends {len(cores)}."
        )
    figures = [{"stream": stream, "alone": [], "at_once": []} for stream in STREAMS]
    # After those that `measure` has scored, with a gap: the nights before are in no way special.
    night = FIRST + timedelta(days=400)
    for _ in range(repeat):
        site.make_partitions(night)
        for at, stream in enumerate(STREAMS):
            done = site.step(
                "discover", site.open_run(stream, night, images), str(cores[at]),
                endpoint=endpoints[at],
            )  # fmt: skip
            figures[at]["alone"].append(done["seconds"])
        night += timedelta(days=LOOKBACK + 1)
        site.make_partitions(night)
        running = [
            site.start(
                "discover", site.open_run(stream, night, images), str(cores[at]),
                endpoint=endpoints[at],
            )
            for at, stream in enumerate(STREAMS)
        ]  # fmt: skip
        for at, process in enumerate(running):
            figures[at]["at_once"].append(finish(process)["seconds"])
        night += timedelta(days=LOOKBACK + 1)
    return figures


def streams_table(figures: Sequence[dict[str, Any]]) -> str:
    """Each stream's seconds alone and beside the other."""
    lines = [f"{'stream':10}  {'alone':>28}  {'at once':>28}  {'times':>6}"]
    for one in figures:
        alone, at_once = statistics.median(one["alone"]), statistics.median(one["at_once"])
        spreads = [
            f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
            for times in (one["alone"], one["at_once"])
        ]
        lines.append(
            f"{one['stream']:10}  {spreads[0]:>28}  {spreads[1]:>28}  {at_once / alone:>6.2f}"
        )
    return "\n".join(lines)


def main(
    nights: int, images: int, history_images: int, repeat: int, streams: int, json_path: Path | None
) -> None:
    """Measure nights without and with a history of `nights`, print the tables.

    Args:
        nights: of history.
        images: of each night that is scored.
        history_images: of each night and stream of the history.
        repeat: how many nights are timed.
        streams: 2 to measure two discoveries at once, too.
        json_path: where the figures go, too.
    """
    from benchmarks.scoring.growth import bucket

    with (
        tempfile.TemporaryDirectory(prefix="nightscore-history-") as name,
        ExitStack() as buckets,
    ):
        endpoints = [
            buckets.enter_context(bucket(images, any_night=True, core=core))
            for core in (None, *_cores(streams))
        ]
        folder = Path(name)
        histories = (0, nights)
        with sites(histories, images, history_images, endpoints[0], folder) as servers:
            figures = measure(servers, images, repeat)
            print(table(figures), flush=True)
            at_once = []
            if streams > 1:
                at_once = discover_at_once(servers[-1], images, repeat, endpoints[1:])
                print(streams_table(at_once), flush=True)
    if json_path:
        document = {
            "date": date.today().isoformat(),
            "machine": machine.describe("cpu"),
            "images": images,
            "history_images": history_images,
            "steps": figures,
            "streams": at_once,
        }
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _cores(streams: int) -> list[int]:
    return sorted(os.sched_getaffinity(0))[: len(STREAMS)] if streams > 1 else []
