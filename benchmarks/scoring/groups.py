"""What it saves that a task scores a group of shards: one process for all, or one for each shard.

A version of `spill-anomaly` that was trained for one epoch scores the same night in turns: by
`nightscore step score-shard`, once for each shard, and by `nightscore step score-shards`, once for
all. Both find the version on this machine, as after its first night. Postgres and MLflow of a local
stack and a synthetic bucket run on the same cores.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import sqlalchemy as sa

from benchmarks import machine
from benchmarks.scoring.growth import bucket
from benchmarks.scoring.startup import NIGHTSCORE, STREAM, Spent, spent, stack
from benchmarks.scoring.workloads import NIGHT
from ml.database.connection import engine_for
from ml.scoring import steps
from ml.settings import settings
from ml.storage.object_store import object_store

# The default of nightscore.yaml, as the stack's configuration sets none.
_SHARD_SIZE = 50_000

Turns = list[list[Spent]]


def _plan() -> tuple[str, list[str]]:
    """Forget all results and plan the night anew; returns the run and its shards."""
    with engine_for(settings().require_owner_url()).begin() as connection:
        connection.execute(sa.text("TRUNCATE nightscore.prediction, nightscore.rejection"))
    run_id = steps.open_run(STREAM, NIGHT)
    steps.discover(run_id)
    return run_id, [str(number) for number in steps.plan_shards(run_id)]


def _process_for_each() -> list[Spent]:
    run_id, shards = _plan()
    return [spent([NIGHTSCORE, "step", "score-shard", run_id, shard]) for shard in shards]


def _one_process() -> list[Spent]:
    run_id, shards = _plan()
    return [spent([NIGHTSCORE, "step", "score-shards", run_id, *shards])]


_WAYS: dict[str, Callable[[], list[Spent]]] = {
    "a process for each shard": _process_for_each,
    "one process": _one_process,
}


def _measure(turns: int) -> dict[str, Turns]:
    _one_process()  # fetches the version
    passes: dict[str, Turns] = {name: [] for name in _WAYS}
    for _ in range(turns):
        for name, way in _WAYS.items():
            passes[name].append(way())
    return passes


def _medians(turns: Turns) -> tuple[float, float]:
    """Seconds and CPU seconds of a turn's processes together, medians over the turns."""
    seconds = [sum(one.seconds for one in processes) for processes in turns]
    cpu_seconds = [sum(one.cpu_seconds for one in processes) for processes in turns]
    return statistics.median(seconds), statistics.median(cpu_seconds)


def _print(passes: dict[str, Turns], shards: int) -> None:
    medians = {name: _medians(turns) for name, turns in passes.items()}
    (each, each_cpu), (together, together_cpu) = medians.values()
    print(f"{shards} shards of {_SHARD_SIZE:,} images, medians\n")
    print("| | s | CPU-s | images/s |")
    print("| --- | ---: | ---: | ---: |")
    for name, (seconds, cpu_seconds) in medians.items():
        rate = shards * _SHARD_SIZE / seconds
        print(f"| {name} | {seconds:.1f} | {cpu_seconds:.1f} | {rate:,.0f} |")
    print(f"| ratio | {each / together:.2f} | {each_cpu / together_cpu:.2f} | |")
    starts = shards - 1
    print(
        f"\neach start that is saved: {(each - together) / starts:.1f} s, "
        f"{(each_cpu - together_cpu) / starts:.1f} CPU-s"
    )


def main() -> None:
    """Measure both ways in turns and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring.groups", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--shards", type=int, default=4, help="2 or more, of 50,000 images each")
    parser.add_argument("--turns", type=int, default=3, help="how often each way is measured")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    temporary = tempfile.TemporaryDirectory(prefix="nightscore-")
    with (
        temporary as folder,
        stack(Path(folder)),
        bucket(arguments.shards * _SHARD_SIZE) as address,
    ):
        # Only the images come from it. The version comes from MLflow, which has a store of its own.
        os.environ["AWS_ENDPOINT_URL"] = address
        settings.cache_clear()
        object_store.cache_clear()
        passes = _measure(arguments.turns)
    _print(passes, arguments.shards)
    if arguments.json:
        raw = {
            name: [[asdict(one) for one in turn] for turn in turns]
            for name, turns in passes.items()
        }
        document = {"machine": machine.describe("cpu"), "turns": raw}
        arguments.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
