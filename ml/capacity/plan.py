"""What a number of images a night needs: pure functions of the demand and the costs.

The assumptions, each a line of docs/capacity.md:

- A worker is a process on a machine like the one that was measured. Workers do not slow each other
  down: S3, the network and Postgres keep up.
- The listing, the manifest and the reconciliation run once per night, on one worker, and their time
  grows with the images.
- The time of a shard outside of the engine does not depend on its size.
- All sums are linear in the images, except for numbers of shards and workers, which are whole.
"""

import math
from dataclasses import dataclass

from ml.capacity.costs import Costs
from ml.scoring.discovery import MAX_SHARDS

NIGHTS_PER_YEAR = 365
# A page of a listing has at most so many keys; S3's limit.
_KEYS_PER_LIST = 1_000
# GET requests per second that S3 allows for a prefix.
GETS_PER_PREFIX = 5_500
# A shard is lost as a whole, so it should take minutes.
_SHARD_S = 300
_LARGEST_SHARD = 1_000_000
# Tasks for each worker, so that the last one does not keep the others waiting.
_TASKS_PER_WORKER = 4
# Assumed, not measured: the size of a heat map and of a report, what a worker holds, and how many
# sessions it and Airflow have at the database of results.
HEATMAP_BYTES = 10_000
REPORT_BYTES = 2_000_000
_WORKER_MEMORY_BYTES = 1_000_000_000
_SESSIONS_PER_WORKER = 3
_OTHER_SESSIONS = 20
# Locks of a backup and of one statement that names no night; measured with 1,000 nights.
_LOCKS_PER_NIGHT = 16


@dataclass(frozen=True)
class Demand:
    """What is asked for.

    Attributes:
        images: new images per night.
        bytes_per_image: the size of an image's file.
        hours: in which a night has to be scored.
        lookback_nights: earlier nights that are listed, too.
        keep_nights: nights whose rows are kept.
    """

    images: int
    bytes_per_image: int
    hours: float = 4.0
    lookback_nights: int = 3
    keep_nights: int = 365


@dataclass(frozen=True)
class Plan:
    """What the demand needs; times in seconds, sizes in bytes.

    Attributes:
        serial_s: of the steps that run once, on one worker.
        one_worker_s: of the whole night on one worker with a CPU.
        workers: with CPUs that score the night within the hours; None if no number does.
        gpus: the same with GPUs; None if none was measured, or if no number does.
        shard_size: suggested.
        shards: of that size.
        shards_per_task: suggested.
        gets_per_second: on average over the hours that are left for scoring.
        prefixes: that S3's limit for a prefix asks for.
        list_requests: per night, as the next four.
        get_requests: the same.
        put_requests: the same.
        delete_requests: the same, once nights are removed.
        bytes_read: from S3.
        network_mbit_per_second: on average over the same time, all workers together.
        rows_per_night: in all tables of Postgres.
        postgres_bytes_per_night: with indexes.
        postgres_bytes_per_year: the same.
        postgres_bytes_kept: of the nights that are kept.
        s3_bytes_per_year: heat maps and reports.
        connections: sessions at Postgres.
        memory_bytes: of all workers.
        lock_slots: of Postgres.
    """

    serial_s: float
    one_worker_s: float
    workers: int | None
    gpus: int | None
    shard_size: int
    shards: int
    shards_per_task: int
    gets_per_second: float
    prefixes: int
    list_requests: int
    get_requests: int
    put_requests: int
    delete_requests: int
    bytes_read: int
    network_mbit_per_second: float
    rows_per_night: int
    postgres_bytes_per_night: float
    postgres_bytes_per_year: float
    postgres_bytes_kept: float
    s3_bytes_per_year: float
    connections: int
    memory_bytes: int
    lock_slots: int


def make_plan(demand: Demand, costs: Costs) -> Plan:
    """Return what a demand needs at these costs."""
    serial = demand.images * costs.outside_seconds_per_image
    rate = costs.cpu_images_per_second
    estimate = workers_needed(demand.images / rate, serial, demand.hours)
    size = shard_size(demand.images, rate, estimate or MAX_SHARDS)
    shards = math.ceil(demand.images / size)
    scoring = scoring_seconds(demand.images, shards, rate, costs)
    workers = workers_needed(scoring, serial, demand.hours)
    gpus = None
    if costs.gpu_images_per_second is not None:
        on_gpu = scoring_seconds(demand.images, shards, costs.gpu_images_per_second, costs)
        gpus = workers_needed(on_gpu, serial, demand.hours)
    heatmaps = math.ceil(demand.images * costs.heatmap_share)
    # Images are fetched while shards are scored, not while they are listed.
    window = max(demand.hours * 3600 - serial, 1.0)
    per_night = postgres_bytes(demand.images, costs)
    return Plan(
        serial_s=serial,
        one_worker_s=serial + scoring,
        workers=workers,
        gpus=gpus,
        shard_size=size,
        shards=shards,
        shards_per_task=max(1, shards // ((workers or 1) * _TASKS_PER_WORKER)),
        gets_per_second=demand.images / window,
        prefixes=math.ceil(demand.images / window / GETS_PER_PREFIX),
        list_requests=(demand.lookback_nights + 1) * math.ceil(demand.images / _KEYS_PER_LIST),
        get_requests=demand.images,
        put_requests=heatmaps + 1,
        delete_requests=heatmaps + 1,
        bytes_read=demand.images * demand.bytes_per_image,
        network_mbit_per_second=8 * demand.images * demand.bytes_per_image / window / 1e6,
        rows_per_night=rows_per_night(demand.images, costs),
        postgres_bytes_per_night=per_night,
        postgres_bytes_per_year=NIGHTS_PER_YEAR * per_night,
        postgres_bytes_kept=demand.keep_nights * per_night,
        s3_bytes_per_year=NIGHTS_PER_YEAR * (heatmaps * HEATMAP_BYTES + REPORT_BYTES),
        connections=(workers or 1) * _SESSIONS_PER_WORKER + _OTHER_SESSIONS,
        memory_bytes=(workers or 1) * _WORKER_MEMORY_BYTES,
        lock_slots=demand.keep_nights * _LOCKS_PER_NIGHT,
    )


def shard_size(images: int, images_per_second: float, workers: int) -> int:
    """Return a number of images that take minutes, and that give each worker several shards.

    A night has at most 500 shards: with more images they are larger, however long they take.
    """
    wanted = min(_SHARD_S * images_per_second, _LARGEST_SHARD, images / workers / _TASKS_PER_WORKER)
    return max(math.ceil(wanted), math.ceil(images / MAX_SHARDS), 1)


def scoring_seconds(images: int, shards: int, images_per_second: float, costs: Costs) -> float:
    """Return the seconds that all shards take on one worker."""
    return images / images_per_second + shards * costs.shard_seconds


def workers_needed(scoring_s: float, serial_s: float, hours: float) -> int | None:
    """Return how many workers score a night within the hours; None if no number does."""
    left = hours * 3600 - serial_s
    return max(1, math.ceil(scoring_s / left)) if left > 0 else None


def rows_per_night(images: int, costs: Costs) -> int:
    """Return the rows of a night in image, manifest, prediction and rejection."""
    return round(images * (2 + costs.models))


def postgres_bytes(images: int, costs: Costs) -> float:
    """Return the bytes of a night's rows, with indexes."""
    results = images * costs.models
    rejected = images * costs.rejected_share * costs.models
    return (
        images * (costs.image_row_bytes + costs.manifest_row_bytes)
        + (results - rejected) * costs.prediction_row_bytes
        + rejected * costs.rejection_row_bytes
    )
