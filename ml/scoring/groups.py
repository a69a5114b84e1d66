"""Which shards a task of the scoring DAG scores: a group, one shard after the other in one process.

A process takes seconds to start: Python, CUDA's context, the programs, their first batch. A group
makes that a small part of a task. A shard stays the unit of what a failure loses.
"""

import math
from itertools import pairwise
from uuid import UUID

from ml.config.loading import configuration
from ml.database.connection import rows, transaction
from ml.program.device import Device, requested_device, usable_gpus
from ml.scoring import discovery, runs

# Airflow's scheduler slows down above about a thousand mapped tasks.
_MAX_GROUPS = discovery.MAX_SHARDS
# Small images that a process scores in ten times the seconds that it takes to start: 2 s and 5,500
# images per second on 2 cores; 8 s and, expected, 15,000 images per second on a GPU.
_IMAGES_PER_GROUP: dict[Device, int] = {"cpu": 110_000, "cuda": 1_200_000}


def plan_groups(run_id: UUID) -> list[list[int]]:
    """Return the numbers of the run's shards that are not finished, in groups of nearly one size.

    A group has at most the stream's `shards_per_task`. Without that setting, starting a process
    takes less than a tenth of a group's time, but there is a group for each GPU of this machine.

    Raises:
        ConfigurationError: `NIGHTSCORE_DEVICE` is wrong.
        DataError: there is no such run.
        ServiceError: Postgres failed.
    """
    shards = discovery.plan_shards(run_id)
    if len(shards) < 2:
        return [shards] if shards else []
    with transaction() as session:
        stream = configuration().stream(runs.get_run(session, run_id).stream)
        unfinished = rows(session, "scoring/sql/unfinished_shards", run_id=run_id)
    if stream.shards_per_task is not None:
        groups = math.ceil(len(shards) / stream.shards_per_task)
    else:
        gpus = usable_gpus()
        device = requested_device().device or ("cuda" if gpus else "cpu")
        groups = automatic_groups(sum(row["images"] for row in unfinished), device, gpus)
    return split(shards, min(groups, _MAX_GROUPS))


def automatic_groups(images: int, device: Device, gpus: int) -> int:
    """Return how many groups share a night's images, for streams without `shards_per_task`.

    Args:
        images: the number of images to score.
        device: what scores them.
        gpus: how many GPUs this machine has.
    """
    return max(images // _IMAGES_PER_GROUP[device], gpus, 1)


def split(shards: list[int], groups: int) -> list[list[int]]:
    """Split shards, in their order, into groups whose sizes differ by at most one."""
    groups = min(groups, len(shards))
    edges = [len(shards) * group // groups for group in range(groups + 1)]
    return [shards[start:end] for start, end in pairwise(edges)]
