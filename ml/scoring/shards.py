"""Score a group of shards in one process, which starts and loads the programs once for all."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple
from uuid import UUID

from ml.database.connection import statement, transaction
from ml.errors import ConfigurationError, DataError, NightscoreError, ServiceError
from ml.program.device import is_gpu_broken
from ml.program.program import Program
from ml.scoring.shard import LoadPrograms, OnImages, load_programs, score_shard

log = logging.getLogger(__name__)

# How many shards the error of a group names.
_MAX_NAMED_SHARDS = 20


class _Failure(NamedTuple):
    """How a shard failed. The error itself would keep the memory of its batches."""

    reason: str
    is_permanent: bool

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        is_permanent = isinstance(error, ConfigurationError | DataError)
        return cls(str(error) or type(error).__name__, is_permanent)


def load_once(load: LoadPrograms = load_programs) -> LoadPrograms:
    """Return a function that loads the programs of a run at its first call, and keeps them."""
    loaded: list[Program] = []

    def load_or_reuse(versions: dict[str, int]) -> list[Program]:
        if not loaded:
            loaded.extend(load(versions))
        return loaded

    return load_or_reuse


def score_shards(
    run_id: UUID,
    numbers: Collection[int],
    on_images: OnImages = lambda count: None,
    load: LoadPrograms = load_programs,
) -> dict[str, int]:
    """Score the shards of a group that are not finished, one after the other, each tried once.

    Each shard is stored by itself. One that fails does not keep the others from being scored. The
    order is by attempts, then number. So if a shard kills the process, a retry takes the others
    first, and so does a second process with the same group while the first is at work. If both
    take the same shard at the same moment, it is scored twice and stored once.

    Args:
        run_id: the scoring run.
        numbers: the shards' numbers.
        on_images: called with the number of images of each batch that was scored.
        load: loads the programs of the pinned versions (model → version); called once, and not if
            there is nothing to score.

    Returns:
        The numbers of results stored by this call, as `score_shard` returns them.

    Raises:
        DataError: shards failed, and a retry cannot help any of them.
        ServiceError: shards failed, and a retry may help. Those that did not fail are stored.
    """
    load = load_once(load)
    counts: Counter[str] = Counter(scored=0, rejected=0)
    failures: dict[int, _Failure] = {}
    untried = set(numbers)
    while (number := _next_shard(run_id, untried)) is not None:
        untried.remove(number)
        try:
            counts.update(score_shard(run_id, number, on_images, load))
        except Exception as error:
            is_expected = isinstance(error, NightscoreError)
            log.error("Shard %s failed: %s", number, error, exc_info=not is_expected)
            failures[number] = _Failure.of(error)
            if is_gpu_broken():
                log.error("This process cannot use its GPU any more; a retry can in a new one")
                break
    if failures:
        raise _group_error(failures, len(numbers))
    return dict(counts)


def _next_shard(run_id: UUID, numbers: Collection[int]) -> int | None:
    """Return the shard to score next; None if all are finished."""
    group = {"run_id": run_id, "shards": list(numbers)}
    with transaction() as session:
        number: int | None = session.scalar(statement("scoring/sql/next_shard"), group)
        return number


def _group_error(failures: Mapping[int, _Failure], shards: int) -> NightscoreError:
    """Return the error of a group, which names the shards that failed."""
    names = ", ".join(map(str, list(failures)[:_MAX_NAMED_SHARDS]))
    reason = list(failures.values())[-1].reason
    message = f"{len(failures)} of {shards} shards failed: {names}. The last error: {reason}"
    is_permanent = all(failure.is_permanent for failure in failures.values())
    return (DataError if is_permanent else ServiceError)(message, "What was stored stays stored.")
