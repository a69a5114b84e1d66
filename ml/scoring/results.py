"""The results of a shard on their way into Postgres: staged as they come, merged in the end.

A thread uploads heat maps and copies rows into temporary tables while the engine goes on. Only
`merge` makes the rows visible, in one transaction. If the process stops before that, nothing
remains.
"""

import threading
from collections.abc import Iterator, Sequence
from datetime import date
from queue import Queue
from types import TracebackType
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ml.database.connection import engine, statement
from ml.database.copying import copy
from ml.database.sums import MERGE_LOCK
from ml.images import heatmap
from ml.parallel import parallel_map
from ml.scoring.engine import BatchResult, Prediction, Rejection
from ml.storage.object_store import object_store

_STAGING = """
CREATE TEMPORARY TABLE staged_prediction (
    night date NOT NULL,
    image_id bigint NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    predicted_class text NOT NULL,
    confidence real,
    score real,
    threshold real,
    flagged boolean NOT NULL,
    heatmap_uri text,
    novelty real,
    review boolean NOT NULL
);
CREATE TEMPORARY TABLE staged_rejection (
    night date NOT NULL,
    image_id bigint NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL
)
"""
_PREDICTION_COLUMNS = (
    "night", "image_id", "model", "version", "predicted_class", "confidence",
    "score", "threshold", "flagged", "heatmap_uri", "novelty", "review",
)  # fmt: skip
_REJECTION_COLUMNS = ("night", "image_id", "model", "version", "reason", "detail")
# Batches that may wait for the writer.
_QUEUE_SIZE = 4


class Results:
    """The results of one shard; use as a context manager.

    Args:
        run_id: the scoring run.
        shard: the shard's number.
        stream: the stream, whose merges wait for each other.
        heatmaps: URI below which the heat maps of flagged images are put.
        nights: the nights of the shard's images.
    """

    def __init__(
        self, run_id: UUID, shard: int, stream: str, heatmaps: str, nights: Sequence[date]
    ) -> None:
        self.run_id = run_id
        self.shard = shard
        self.stream = stream
        self.heatmaps = heatmaps
        self.nights = list(nights)
        self._queue: Queue[BatchResult | None] = Queue(maxsize=_QUEUE_SIZE)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="results", daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> "Results":
        self._connection = engine().connect()
        # The temporary tables must end with us, so the connection never returns to the pool.
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

    def add(self, batch: BatchResult) -> None:
        """Hand over the results of a batch; waits while the writer is behind."""
        self._raise_error()
        self._queue.put(batch)

    def merge(self, images: int, seconds: float, device: str | None) -> None:
        """Make all added results visible and mark the shard finished, in one transaction.

        Args:
            images: the number of images that the engine has scored.
            seconds: how long that took, from the request of the first image to the result of the
                last one.
            device: what the engine computed on, as `ml.program.device.device_name` says it; None
                if nothing was scored.

        Raises:
            ServiceError: Postgres or S3 failed; nothing is visible.
        """
        self._finish_thread()
        self._raise_error()
        run, nights = {"run_id": self.run_id}, {"nights": self.nights}
        with self._connection.begin():
            # One merge of a stream at a time: no deadlock between two runs of one night, and no
            # image scored by one and rejected by the other.
            self._connection.execute(MERGE_LOCK, {"stream": self.stream})
            self._connection.execute(statement("scoring/sql/merge_predictions"), run)
            self._connection.execute(statement("scoring/sql/delete_rejections"), nights)
            self._connection.execute(statement("scoring/sql/merge_rejections"), run | nights)
            work = {"images": images, "seconds": seconds, "device": device}
            shard = run | {"shard": self.shard} | work
            self._connection.execute(statement("scoring/sql/finish_shard"), shard)

    def _write(self) -> None:
        try:
            while (batch := self._queue.get()) is not None:
                if self._error is None:
                    self._stage(batch)
        finally:
            self._ended.set()

    def _stage(self, batch: BatchResult) -> None:
        try:
            rows = self._prediction_rows(batch.predictions)
            copy(self._connection, "staged_prediction", _PREDICTION_COLUMNS, rows)
            if batch.rejections:
                rows = _rejection_rows(batch.rejections)
                copy(self._connection, "staged_rejection", _REJECTION_COLUMNS, rows)
            self._connection.commit()
        except BaseException as error:  # raised again in the thread that adds
            self._error = error

    def _prediction_rows(self, predictions: Sequence[Prediction]) -> Iterator[tuple[Any, ...]]:
        flagged = [prediction for prediction in predictions if prediction.anomaly_map is not None]
        uris = dict(parallel_map(self._upload, flagged, threads=8, buffer_size=16))
        for prediction in predictions:
            item = prediction.item
            yield (
                item.night, item.image_id, prediction.model, prediction.version,
                prediction.predicted_class, prediction.confidence, prediction.score,
                prediction.threshold, prediction.flagged,
                uris.get((prediction.model, item.image_id)), prediction.novelty, prediction.review,
            )  # fmt: skip

    def _upload(self, prediction: Prediction) -> tuple[tuple[str, int], str]:
        """Put the heat map of a flagged image; returns model and image with its URI."""
        item, model, version = prediction.item, prediction.model, prediction.version
        assert prediction.pixels is not None and prediction.anomaly_map is not None
        uri = f"{self.heatmaps}/dt={item.night}/{model}/{version}/{item.image_id}.jpg"
        content = heatmap.overlay_jpeg(prediction.pixels, prediction.anomaly_map)
        object_store().put(uri, content, "image/jpeg")
        return (model, item.image_id), uri

    def _finish_thread(self) -> None:
        # A `join` that Ctrl-C interrupts takes a living thread for dead (until Python 3.13:
        # https://github.com/python/cpython/issues/90882), and that thread uses our connection.
        if not self._ended.is_set():
            self._queue.put(None)
            self._ended.wait()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _rejection_rows(rejections: Sequence[Rejection]) -> Iterator[tuple[Any, ...]]:
    for rejection in rejections:
        item = rejection.item
        yield (
            item.night, item.image_id, rejection.model, rejection.version, rejection.reason,
            rejection.detail,
        )  # fmt: skip
