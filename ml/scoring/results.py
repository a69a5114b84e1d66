"""The results of a shard on their way into Postgres: staged while they come, merged at once.

A thread uploads heat maps and copies rows into a temporary table while the engine goes on. Only
`merge` makes them visible, in one transaction; whatever stops the process before leaves nothing.
"""

import threading
from collections.abc import Iterator, Sequence
from queue import Queue
from types import TracebackType
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ml.database.connection import engine, statement
from ml.database.copying import copy
from ml.images import heatmap
from ml.parallel import parallel_map
from ml.scoring.engine import Result
from ml.storage.object_store import object_store

_STAGING = """
CREATE TEMPORARY TABLE staging (
    night date NOT NULL,
    image_id bigint NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    predicted_class text,
    confidence real,
    score real,
    threshold real,
    flagged boolean NOT NULL,
    heatmap_uri text,
    reason text,
    detail text NOT NULL,
    novelty real,
    review boolean NOT NULL
)
"""
_COLUMNS = (
    "night", "image_id", "model", "version", "predicted_class", "confidence",
    "score", "threshold", "flagged", "heatmap_uri", "reason", "detail", "novelty", "review",
)  # fmt: skip


class Results:
    """Collects the results of one shard; use as a context manager.

    Args:
        stream: names the lock under which merges of the stream wait for each other.
        heatmaps: URI below which the heat maps of flagged images are put.
    """

    def __init__(self, run_id: UUID, shard: int, stream: str, heatmaps: str) -> None:
        self.run_id = run_id
        self.shard = shard
        self.stream = stream
        self.heatmaps = heatmaps
        self._queue: Queue[Sequence[Result] | None] = Queue(maxsize=4)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="results", daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> "Results":
        self._connection = engine().connect()
        # The temporary table must end with us, so the connection never returns to the pool.
        self._connection.detach()
        self._connection.execute(sa.text(_STAGING))
        self._connection.commit()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish_thread()
        self._connection.close()

    def add(self, results: Sequence[Result]) -> None:
        """Hand over the results of a batch; waits while the writer is behind."""
        self._raise_error()
        self._queue.put(results)

    def merge(self, images: int, seconds: float) -> None:
        """Make everything added visible and mark the shard finished, in one transaction.

        Args:
            images, seconds: how many images the engine has scored, and how long it took from the
                request of the first to the result of the last.
        """
        self._finish_thread()
        self._raise_error()
        parameters = {"run_id": self.run_id}
        with self._connection.begin():
            # One merge of a stream at a time: no deadlock between two runs of one night, and no
            # image scored by one and rejected by the other.
            self._connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(hashtext('merge'), hashtext(:stream))"),
                {"stream": self.stream},
            )
            self._connection.execute(statement("scoring/sql/merge_scored"), parameters)
            self._connection.execute(statement("scoring/sql/merge_unreject"))
            self._connection.execute(statement("scoring/sql/merge_rejected"), parameters)
            finished = {"shard": self.shard, "images": images, "seconds": seconds}
            self._connection.execute(statement("scoring/sql/finish_shard"), parameters | finished)

    def _write(self) -> None:
        try:
            self._stage()
        finally:
            self._ended.set()

    def _stage(self) -> None:
        while (results := self._queue.get()) is not None:
            if self._error is None:
                try:
                    copy(self._connection, "staging", _COLUMNS, self._rows(results))
                    self._connection.commit()
                except BaseException as error:  # handed to the thread that adds
                    self._error = error

    def _rows(self, results: Sequence[Result]) -> Iterator[tuple[Any, ...]]:
        flagged = [result for result in results if result.heat is not None]
        uris = dict(parallel_map(self._upload, flagged, threads=8, buffer_size=16))
        for result in results:
            item = result.item
            yield (
                item.night, item.image_id, result.model, result.version,
                result.predicted_class or None, result.confidence, result.score, result.threshold,
                result.flagged, uris.get((result.model, item.image_id)),
                result.reason, result.detail, result.novelty, result.review,
            )  # fmt: skip

    def _upload(self, result: Result) -> tuple[tuple[str, int], str]:
        assert result.pixels is not None and result.heat is not None
        item = result.item
        uri = f"{self.heatmaps}/dt={item.night}/{result.model}/{result.version}/{item.image_id}.jpg"
        object_store().put(uri, heatmap.overlay_jpeg(result.pixels, result.heat), "image/jpeg")
        return (result.model, item.image_id), uri

    def _finish_thread(self) -> None:
        # A `join` that Ctrl-C interrupts takes a living thread for dead (until Python 3.13:
        # https://github.com/python/cpython/issues/90882), and it has our connection.
        if not self._ended.is_set():
            self._queue.put(None)
            self._ended.wait()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
