"""How scoring scales with workers: nights of the same images on one, two and four containers.

Each worker has half a core by its cgroup, so that a machine of two cores can show it. The services
share those cores: with four workers nothing is left for them, and the efficiency is a lower bound.

`make docker-scaling` prints a table; it takes a quarter of an hour.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tests.docker.composition import Composition, run, version
from tests.support import synthetic_images

WORKERS = (1, 2, 4)
HEIGHT, WIDTH = 128, 224
CONFIGURATION = """\
storage: s3://nightscore
resources:
  score: {{queue: default}}
  retrain: {{queue: gpu}}
streams:
  line:
    prefix: s3://nightscore/streams/line
    models: [plates]
    lookback_nights: 0
    shard_size: {shard}
    shards_per_task: 1
models:
  plates:
    task: anomaly
    dataset: plates
    architecture: anomaly_segmenter
    input_size: [128, 224]
    options: {{width: 16}}
    holdout_share: 0.3
    training:
      cpu: {{epochs: 1, batch_size: 16, learning_rate: 0.005}}
    gate: {{metric: auroc, minimum: 0, max_drop: 1}}
"""


def plate(kind: str, number: int) -> bytes:
    """A PNG file of a grey plate, `normal` or with a bright patch."""
    random = np.random.default_rng([number, len(kind)])
    array = 100 + random.integers(-10, 10, (HEIGHT, WIDTH, 3))
    if kind != "normal":
        y, x = random.integers(20, 70, 2)
        array[y : y + 40, x : x + 40] += 100
    return synthetic_images.png(array.astype(np.uint8))


def write_dataset(folder: Path) -> None:
    """Write 200 plates, laid out SPLIT/CLASS/FILE."""
    layout = (("train", "normal", 150), ("calibration", "anomalous", 40), ("test", "anomalous", 10))
    for split, kind, count in layout:
        (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            (folder / split / kind / f"{number}.png").write_bytes(plate(kind, number))


def write_night(folder: Path, images: int) -> None:
    """Write the images of a night: 100 different ones, again and again under other names."""
    folder.mkdir()
    different = [plate("normal", 10_000 + number) for number in range(100)]
    for number in range(images):
        (folder / f"{number:05}.png").write_bytes(different[number % 100])


def score(running: Composition, night: date) -> dict[str, float]:
    """Score a night by its DAG, and measure its tasks."""
    with running.airflow() as api:
        api.unpause("score_line")
        dag_run = api.trigger("score_line", {"night": night.isoformat()})
        state = api.wait([dag_run], timeout_s=1800)[dag_run]
        if state != "success":
            raise SystemExit(api.failure(dag_run))
        tasks = [each for each in api.task_instances(dag_run) if each["task_id"] == "score_shards"]
    return measure(tasks, shards_of(running, night))


def shards_of(running: Composition, night: date) -> list[dict[str, float]]:
    """The images and the engine's seconds of each shard of a night."""
    code = f"""
import json, sqlalchemy as sa
from ml.database.connection import transaction
with transaction() as session:
    rows = session.execute(sa.text(
        "SELECT images, engine_seconds AS seconds FROM reporting.shards"
        " WHERE night = '{night}' AND finished_at IS NOT NULL"))
    print(json.dumps([dict(row) for row in rows.mappings()]))
"""
    return json.loads(running.compose("run", "--rm", "-T", "cli", "python3", "-c", code))


def measure(tasks: list[dict[str, Any]], shards: list[dict[str, Any]]) -> dict[str, float]:
    """Return images/s from the first task's start to the last one's end, and each shard's overhead.

    The overhead is the part of a task in which the engine scores nothing: Python and its packages
    start, the program is opened, results are stored.

    Args:
        tasks: Airflow's instances of `score_shards`.
        shards: the shards that they scored, one each.
    """
    begin = min(datetime.fromisoformat(each["start_date"]) for each in tasks)
    end = max(datetime.fromisoformat(each["end_date"]) for each in tasks)
    wall = (end - begin).total_seconds()
    images = sum(each["images"] for each in shards)
    busy = statistics.mean(each["duration"] for each in tasks)
    scoring = statistics.mean(each["seconds"] for each in shards)
    return {"wall": wall, "rate": images / wall, "overhead": busy - scoring, "scoring": scoring}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4_800, help="images of each night")
    parser.add_argument("--shards", type=int, default=8, help="shards of each night")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nightscore-scaling-"))
    folder.chmod(0o755)
    configuration = CONFIGURATION.format(shard=arguments.images // arguments.shards)
    running = Composition(
        folder, configuration, WORKER_CPUS="0.5", WORKER_CONCURRENCY="1", GPU_SLOTS="8"
    )
    try:
        results = _measure_all(running, folder, arguments.images)
    finally:
        running.down()
        shutil.rmtree(folder)
    print(f"Nightscore {version()}, {arguments.images:,} images of {HEIGHT} x {WIDTH}, "
          f"{arguments.shards} shards, half a core per worker")  # fmt: skip
    print("workers  images/s  efficiency  seconds  scoring/shard  overhead/shard")
    for workers, result in results.items():
        efficiency = result["rate"] / (workers * results[1]["rate"])
        print(f"{workers:7}  {result['rate']:8.1f}  {efficiency:10.0%}  {result['wall']:7.0f}"
              f"  {result['scoring']:11.1f} s  {result['overhead']:12.1f} s")  # fmt: skip


def _measure_all(running: Composition, folder: Path, images: int) -> dict[int, dict[str, float]]:
    write_dataset(folder / "plates")
    write_night(folder / "night", images)
    running.up(worker=1)
    running.nightscore("dataset", "import", "/data/plates", "--name", "plates", folder=folder)
    with running.airflow() as api:
        api.unpause("retrain_plates")
        trained = api.trigger("retrain_plates")
        if api.wait([trained], timeout_s=900)[trained] != "success":
            raise SystemExit(api.failure(trained))
    # The trainer has done its part, and its core is free.
    running.compose("stop", "--timeout", "5", "worker-gpu")
    results = {}
    for number, workers in enumerate(WORKERS):
        night = datetime.now(UTC).date() - timedelta(days=number)
        running.nightscore("ingest", "/data/night", "--stream", "line", "--date", str(night), folder=folder)  # fmt: skip
        running.compose("up", "--detach", "--no-recreate", "--scale", f"worker={workers}", "worker")
        _wait_for_workers(running, workers)
        results[workers] = score(running, night)
        print(f"{workers} workers: {results[workers]}", flush=True)
    return results


def _wait_for_workers(running: Composition, count: int) -> None:
    for container in running.containers("worker")[:count]:
        script = "until nightscore-health celery > /dev/null; do sleep 2; done"
        run("docker", "exec", container, "sh", "-c", script)


if __name__ == "__main__":
    main()
