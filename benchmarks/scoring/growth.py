"""What a night costs as it grows: time and memory of discovery and of scoring.

For each number of images it starts a new Postgres and a bucket that holds so many keys and takes
no room (`benchmarks.scoring.synthetic_bucket`; on the same cores), and runs the steps of a night,
each in a process of its own: discover, score all shards, and discover again with nothing new.
With --history it measures instead what so many nights of history cost a night
(`benchmarks.scoring.history`).
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks import machine
from benchmarks.paths import REPOSITORY
from benchmarks.scoring import workloads
from benchmarks.scoring.contender import Job
from benchmarks.scoring.growth_steps import STEPS
from benchmarks.scoring.nightscore import load_program
from benchmarks.scoring.runner import Pass, run_pass
from benchmarks.scoring.synthetic_bucket import ANY_NIGHT, DISTINCT, HOST
from benchmarks.scoring.workloads import NIGHT, WORKLOADS
from ml.program.program_file import export
from ml.settings import settings
from ml.stack.local import LocalStack
from ml.storage.object_store import split_uri

SIZES = (10_000, 100_000, 1_000_000)
_WORKLOAD = WORKLOADS["spill"]


@contextmanager
def bucket(count: int, *, any_night: bool = False, core: int | None = None) -> Iterator[str]:
    """A synthetic bucket, on one core if it is given; yields its endpoint."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.scoring.synthetic_bucket", str(port), str(count)]
    server = subprocess.Popen([*command, *([ANY_NIGHT] if any_night else [])], cwd=REPOSITORY)
    if core is not None:
        os.sched_setaffinity(server.pid, {core})
    try:
        _wait_for(port, server)
        yield f"http://{HOST}:{port}"
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("The synthetic bucket did not start.")


@contextmanager
def _night(count: int, folder: Path) -> Iterator[tuple[Job, list[psutil.Process]]]:
    """A stack that has never seen the night; yields the job and the servers' processes."""
    os.environ["NIGHTSCORE_HOME"] = str(folder / "stack")
    os.environ["NIGHTSCORE_CONFIG"] = str(folder / "nightscore.yaml")
    workloads.write_configuration(folder / "nightscore.yaml")
    with bucket(count) as endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        settings.cache_clear()
        stack = LocalStack(folder / "stack")
        try:
            stack.up(("postgres",))
            settings.cache_clear()
            servers = [psutil.Process(found.pid) for found in stack.status() if found.pid]
            yield make_job(folder), servers
        finally:
            stack.down()


def make_job(folder: Path) -> Job:
    """What the steps are told of the stack that the environment names."""
    current = settings()
    network = workloads.network(_WORKLOAD)
    contents = workloads.draw_images("spill", DISTINCT)
    program = folder / "model.pt2"
    export(network, program, _WORKLOAD.input_size)
    job = Job(
        workload=_WORKLOAD.name,
        model=_WORKLOAD.model,
        night=NIGHT,
        turn=1,
        version=1,
        precision="float32",
        endpoint=current.s3_endpoint,
        key_id=current.s3_access_key,
        secret=current.s3_secret_key.get_secret_value(),
        region=current.s3_region,
        bucket=split_uri(_WORKLOAD.prefix)[0].removeprefix("s3://"),
        keys=(),
        program=str(program),
        task=_WORKLOAD.task,
        classes=_WORKLOAD.classes,
        input_size=_WORKLOAD.input_size,
        threshold=workloads.threshold(_WORKLOAD, network, contents),
        database_url=current.require_owner_url().replace("+psycopg2", ""),
        table="",
        cores=machine.cores(),
        device="cpu",
    )
    load_program(job, version=1)
    return job


def measure(count: int) -> dict[str, Any]:
    """The steps' figures for a night of `count` images."""
    with tempfile.TemporaryDirectory(prefix="nightscore-growth-") as name:
        folder = Path(name)
        with _night(count, folder) as (job, servers):
            found = {step: _step(step, job, servers, folder) for step in STEPS}
    if found["score"].images != count or found["discover"].images != count:
        raise SystemExit(f"{found['score'].images} of {count} images were scored.")
    return {"images": count} | {step: _figures(one, count) for step, one in found.items()}


def _step(step: str, job: Job, servers: Sequence[psutil.Process], folder: Path) -> Pass:
    path = folder / f"{step}.json"
    job.write(path)
    done = run_pass(["benchmarks.scoring.growth_steps", step], path, servers, "cpu")
    print(f"  {step}: {done.seconds:.1f} s", file=sys.stderr, flush=True)
    return done


def _figures(done: Pass, count: int) -> dict[str, float]:
    return {
        "seconds": round(done.seconds, 2),
        "images_per_second": round(count / done.seconds, 1),
        "cpu_seconds_per_1000": round(1000 * done.own_cpu_seconds / count, 4),
        "postgres_cpu_seconds_per_1000": round(1000 * done.servers_cpu_seconds / count, 4),
        "peak_memory_mb": round(done.peak_memory_mb),
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'images':>9}  {'step':14}  {'seconds':>8}  {'images/s':>9}  {'CPU-s/1,000':>11}  "
        f"{'Postgres':>8}  {'peak MB':>7}"
    ]
    for row in rows:
        for step in STEPS:
            one = row[step]
            lines.append(
                f"{row['images']:>9,}  {step:14}  {one['seconds']:>8.1f}  "
                f"{one['images_per_second']:>9,.0f}  {one['cpu_seconds_per_1000']:>11.3f}  "
                f"{one['postgres_cpu_seconds_per_1000']:>8.3f}  {one['peak_memory_mb']:>7,.0f}"
            )
    return "\n".join(lines)


def _measure_history(arguments: argparse.Namespace) -> bool:
    """What --history, --prune and --migrate ask for; returns whether any of them was given."""
    if arguments.history:
        from benchmarks.scoring import history

        history.main(
            arguments.history,
            arguments.night_images,
            arguments.history_images,
            arguments.repeat,
            arguments.streams,
            arguments.json,
        )
    for option, module in (("prune", "prune_while_scoring"), ("migrate", "migration")):
        if nights := getattr(arguments, option):
            import_module(f"benchmarks.scoring.{module}").main(nights)
    return bool(arguments.history or arguments.prune or arguments.migrate)


def main() -> None:
    """Measure a night of each size and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, nargs="+", default=SIZES, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    history = parser.add_argument_group("with a history")
    history.add_argument("--history", type=int, metavar="NIGHTS", help="measure so many nights")
    history.add_argument("--history-images", type=int, default=2000, help="of a night and stream")
    history.add_argument(
        "--night-images", type=int, default=20_000, help="of a night that is scored"
    )
    history.add_argument("--repeat", type=int, default=5, help="nights that are timed")
    history.add_argument(
        "--streams", type=int, choices=(1, 2), default=1, help="2: two discoveries at once, too"
    )
    history.add_argument("--prune", type=int, metavar="NIGHTS", help="prune so many while scoring")
    history.add_argument("--migrate", type=int, metavar="NIGHTS", help="migrate so many")
    arguments = parser.parse_args()
    for name in list(os.environ):
        if name.startswith(("AWS_", "NIGHTSCORE_")):
            del os.environ[name]
    if _measure_history(arguments):
        return
    rows = []
    for count in arguments.images:
        print(f"{count:,} images", file=sys.stderr, flush=True)
        rows.append(measure(count))
    about = machine.describe("cpu")
    print(_table(rows))
    if arguments.json:
        document = {"date": date.today().isoformat(), "machine": about, "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
