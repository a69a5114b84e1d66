"""Score one shard of a run: the unit of what is stored at once, and of what a failure loses."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import date
from functools import partial
from itertools import chain
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ml.config.loading import configuration
from ml.cores import usable_cores
from ml.database.connection import statement, transaction
from ml.database.tables import ScoringRun, Shard
from ml.errors import DataError, ServiceError
from ml.images.rejection import TRANSIENT
from ml.parallel import prefetch
from ml.program.device import Device, device_name, select_device
from ml.program.program import Program
from ml.registry import programs
from ml.scoring import runs
from ml.scoring.engine import Item, score, thread_count
from ml.scoring.results import Results
from ml.storage.download import download
from ml.storage.nights import night_range
from ml.storage.object_store import object_store

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 10.0
_MAX_ERROR_LENGTH = 500
_ROWS_PER_PAGE = 1000
# Any number of pages: a shard's list of images fits in memory, and Postgres need not wait with an
# open result until the listed images are scored.
_UNLIMITED = 0

OnImages = Callable[[int], None]
LoadPrograms = Callable[[dict[str, int]], list[Program]]


def load_programs(versions: dict[str, int]) -> list[Program]:
    """Load the programs of the pinned versions (model → version) on the best device."""
    device = select_device()
    return [programs.load(model, version, device) for model, version in versions.items()]


def score_shard(
    run_id: UUID,
    number: int,
    on_images: OnImages = lambda count: None,
    load: LoadPrograms = load_programs,
) -> dict[str, int]:
    """Score the images of a shard that have no result yet, and store the results.

    Safe to repeat at any point: what is stored is not scored again, and the row of a finished shard
    stays as it is.

    Args:
        run_id: the scoring run.
        number: the shard's number.
        on_images: called with the number of images of each batch that was scored.
        load: loads the programs of the pinned versions (model → version); not called if there is
            nothing to score.

    Returns:
        The numbers of results stored: `scored`, `rejected`, and rejections by reason.

    Raises:
        DataError: there is no such shard, a pinned version is not registered, or its program is not
            what was registered; no image has been fetched.
        ServiceError: S3, Postgres or MLflow failed. Nothing of the shard is visible; retry it.
    """
    try:
        return _score_shard(run_id, number, on_images, load)
    except Exception as error:
        _record_failure(run_id, number, error)
        raise


def _record_failure(run_id: UUID, number: int, error: Exception) -> None:
    """Store with the shard how it failed, for the error of its run, if Postgres can be reached."""
    message = " ".join(str(error).split())[:_MAX_ERROR_LENGTH].rstrip(".") or type(error).__name__
    with suppress(ServiceError, SQLAlchemyError), transaction() as session:
        shard = {"run_id": run_id, "shard": number, "error": message}
        session.execute(statement("scoring/sql/fail_shard"), shard)


def _score_shard(
    run_id: UUID, number: int, on_images: OnImages, load: LoadPrograms
) -> dict[str, int]:
    with transaction() as session:
        run = runs.get_run(session, run_id)
        stream_name = run.stream
        versions = runs.pinned_versions(session, run_id)
        nights = _nights(session, run, number)
        if not _start(session, run_id, number):
            log.info("Shard %s of run %s is finished already", number, run_id)
            return {"scored": 0, "rejected": 0}
    # The first images are fetched while the others are still being listed.
    with closing(prefetch(_pending_items(run_id, number, nights), buffer_size=_UNLIMITED)) as pages:
        first_page = next(pages, [])
        loaded = load(versions) if first_page else []
        items = chain(first_page, chain.from_iterable(pages))
        with Results(run_id, number, stream_name, _heatmaps(stream_name), nights) as results:
            counts = _score_items(results, items, loaded, on_images)
    log.info("Shard %s of run %s is stored: %s", number, run_id, dict(counts))
    return dict(counts)


def _nights(session: Session, run: ScoringRun, number: int) -> list[date]:
    """The nights of a shard's images; those of its run, for a shard of older code."""
    shard = session.get(Shard, (run.run_id, number))
    if shard is None:
        raise DataError(
            f"Run {run.run_id} has no shard {number}.",
            f"`nightscore step plan-shards {run.run_id}` prints those that are to be scored.",
        )
    if shard.first_night is None or shard.last_night is None:
        return runs.nights(run)
    return night_range(shard.first_night, shard.last_night)


def _start(session: Session, run_id: UUID, number: int) -> bool:
    """Count an attempt at a shard; returns False if the shard is finished."""
    row = {"run_id": run_id, "shard": number}
    return bool(session.scalar(statement("scoring/sql/start_shard"), row))


def _pending_items(run_id: UUID, number: int, nights: Sequence[date]) -> Iterator[list[Item]]:
    """The shard's images that have no result yet, in pages."""
    shard = {"run_id": run_id, "shard": number, "transient": list(TRANSIENT), "nights": nights}
    with transaction() as session:
        images = session.execute(
            statement("scoring/sql/shard_images"), shard, execution_options={"stream_results": True}
        )
        for page in images.partitions(_ROWS_PER_PAGE):
            yield [Item(*row) for row in page]


def _heatmaps(stream: str) -> str:
    """The URI below which the heat maps of a stream are put."""
    return f"{configuration().storage}/heatmaps/{stream}"


def _score_items(
    results: Results, items: Iterable[Item], loaded: list[Program], on_images: OnImages
) -> Counter[str]:
    """Score images and store their results; returns the numbers of results."""
    counts: Counter[str] = Counter(scored=0, rejected=0)
    images = 0
    device = _log_device(loaded[0].device) if loaded else None
    limits = configuration().stream(results.stream).limits
    started = reported = time.monotonic()
    for batch in score(items, loaded, partial(download, object_store()), limits):
        results.add(batch)
        batch_images = len(batch) // len(loaded)
        images += batch_images
        on_images(batch_images)
        counts["scored"] += len(batch.predictions)
        counts["rejected"] += len(batch.rejections)
        counts.update(str(rejection.reason) for rejection in batch.rejections)
        if (now := time.monotonic()) - reported > _PROGRESS_EVERY_S:
            reported = now
            log.info("%s images, %.0f per second so far", images, images / (now - started))
    seconds = time.monotonic() - started
    results.merge(images, seconds, device)
    if images:
        rate = images / max(seconds, 1e-9)
        log.info("The engine scored %s images in %.2f s, %.0f per second", images, seconds, rate)
    return counts


def _log_device(device: Device) -> str:
    """Log what the images are scored on; returns its name."""
    name, threads, cores = device_name(device), thread_count(device), usable_cores()
    log.info("Scoring on %s, with %s threads on %s CPU cores", name, threads, cores)
    return name
