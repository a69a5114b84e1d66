"""Score one shard of a run: the unit of retry and of scale-out."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from ml.config.loading import configuration
from ml.config.schema import Stream
from ml.database.connection import statement, transaction
from ml.errors import ServiceError
from ml.images.rejection import TRANSIENT
from ml.parallel import prefetch
from ml.program.device import select_device
from ml.program.program import Program
from ml.registry import programs
from ml.scoring import run as runs
from ml.scoring.engine import Item, Limits, score
from ml.scoring.results import Results
from ml.storage.download import download
from ml.storage.object_store import object_store

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 10.0
_LONGEST_ERROR = 500
_PAGE = 1000
# Its list of images fits in memory; Postgres is not kept waiting for the scoring of what it lists.
_WHOLE_SHARD = 0

OnImages = Callable[[int], None]
Load = Callable[[dict[str, int]], list[Program]]


def load_programs(versions: dict[str, int]) -> list[Program]:
    """The exported programs of the pinned versions, checked and on the best device."""
    device = select_device()
    return [programs.load(model, version, device) for model, version in versions.items()]


def score_shard(
    run_id: UUID,
    number: int,
    on_images: OnImages = lambda count: None,
    load: Load = load_programs,
) -> dict[str, int]:
    """Score the images of a shard that its run still owes, and store the results.

    Safe to repeat at any point: what is stored is not scored again.

    Args:
        on_images: hears how many images each batch had.
        load: the programs of pinned versions (model → version).

    Returns:
        How many results were stored: `scored`, and `rejected` with each reason code.

    Raises:
        DataError: a pinned version is not registered, or its program is not what was registered; no
            image has been fetched.
        ServiceError: S3, Postgres or MLflow failed; nothing of the shard is visible, retry it.
    """
    try:
        return _score_shard(run_id, number, on_images, load)
    except Exception as error:
        _note_failure(run_id, number, error)
        raise


def _note_failure(run_id: UUID, number: int, error: Exception) -> None:
    """Keep with the shard how it failed, for whoever reads the run's row; if Postgres is there."""
    text = " ".join(str(error).split())[:_LONGEST_ERROR].rstrip(".") or type(error).__name__
    with suppress(ServiceError, SQLAlchemyError), transaction() as session:
        wanted = {"run_id": run_id, "shard": number, "error": text}
        session.execute(statement("scoring/sql/fail_shard"), wanted)


def _score_shard(run_id: UUID, number: int, on_images: OnImages, load: Load) -> dict[str, int]:
    with transaction() as session:
        run = runs.get(session, run_id)
        stream_name = run.stream
        versions = runs.pinned(session, run_id)
        session.execute(statement("scoring/sql/start_shard"), {"run_id": run_id, "shard": number})
    # The first images are fetched while the rest are still being listed.
    with closing(prefetch(_owed(run_id, number), buffer_size=_WHOLE_SHARD)) as pages:
        first = next(pages, [])
        programs = load(versions) if first else []
        items = chain(first, chain.from_iterable(pages))
        counts = _store(run_id, number, stream_name, items, programs, on_images)
    log.info("Shard %s of run %s is stored: %s", number, run_id, dict(counts))
    return dict(counts)


def _owed(run_id: UUID, number: int) -> Iterator[list[Item]]:
    wanted = {"run_id": run_id, "shard": number, "transient": list(TRANSIENT)}
    with transaction() as session:
        as_read = {"stream_results": True}
        images = statement("scoring/sql/shard_images")
        found = session.execute(images, wanted, execution_options=as_read)
        for page in found.partitions(_PAGE):
            yield [Item(*row) for row in page]


def _store(
    run_id: UUID,
    number: int,
    stream_name: str,
    items: Iterable[Item],
    programs: list[Program],
    on_images: OnImages,
) -> Counter[str]:
    config = configuration()
    counts: Counter[str] = Counter(scored=0, rejected=0)
    images = 0
    heatmaps = f"{config.storage}/heatmaps/{stream_name}"
    with Results(run_id, number, stream_name, heatmaps) as results:
        limits = _limits(config.stream(stream_name))
        started = reported = time.monotonic()
        for batch in score(items, programs, partial(download, object_store()), limits):
            results.add(batch)
            scored = len(batch) // len(programs)
            images += scored
            on_images(scored)
            counts.update("scored" if result.reason is None else "rejected" for result in batch)
            counts.update(str(result.reason) for result in batch if result.reason is not None)
            if (now := time.monotonic()) - reported > _PROGRESS_EVERY_S:
                reported = now
                log.info("%s images, %.0f per second so far", images, images / (now - started))
        seconds = time.monotonic() - started
        results.merge(images, seconds)
    if images:
        rate = images / max(seconds, 1e-9)
        log.info("The engine scored %s images in %.2f s, %.0f per second", images, seconds, rate)
    return counts


def _limits(stream: Stream) -> Limits:
    return Limits(stream.limits.max_pixels, stream.limits.max_bytes)
