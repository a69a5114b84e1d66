"""The engine decodes, copies and computes at the same time: it is about as fast as its slowest part.

The files are in memory, so neither S3 nor Postgres takes part.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import count, cycle
from typing import TypeVar

import numpy as np
import pytest

from benchmarks.scoring.processes import GpuUse
from ml.config.schema import Limits
from ml.images.decoding import decode
from ml.images.resizing import resize
from ml.parallel import parallel_map
from ml.program.program import Program
from ml.scoring.engine import Item, score, thread_count
from ml.storage.download import DownloadResult
from tests.gpu.conftest import IS_REHEARSAL
from tests.gpu.trained import Trained

# Of a part alone, and of the engine: a GPU's share is sampled over two seconds or more.
_PART_SECONDS, _SECONDS = (0.2, 0.2) if IS_REHEARSAL else (1.0, 2.5)
_LIMITS = Limits(max_pixels=10**6, max_bytes=10**6)
_BATCHES = 4
# Far less than what is expected: it is to notice that nothing overlaps, not how well it does.
_LEAST_EFFICIENCY = 0.5
Work = TypeVar("Work")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["residual_network", "anomaly_segmenter"])
def test_the_engine_is_about_as_fast_as_its_slowest_part(
    architecture, precision, train_once, device, monkeypatch, record_property
):
    monkeypatch.setenv("NIGHTSCORE_PRECISION", precision)
    trained = train_once(architecture)
    program = Program.load(trained.path, trained.info, device)
    batches = [_files(trained, program.batch_size) for _ in range(_BATCHES)]
    pixels = [_decoded(program, batch) for batch in batches]
    for _ in _engine(trained, program, trained.files[: 2 * program.batch_size]):
        pass  # kernels are chosen and loaded
    decoding = _rate(lambda batch: len(_decoded(program, batch)), batches, device)
    forward = _rate(lambda batch: len(program.predict(batch, maps="flagged")), pixels, device)
    with GpuUse(device) as gpu:
        started = time.perf_counter()
        scored = sum(_engine(trained, program, _until(started + _SECONDS, trained.files)))
        rate = scored / (time.perf_counter() - started)
    efficiency = rate / min(decoding, forward)
    record_property("images per batch", program.batch_size)
    record_property("images/s", round(rate))
    record_property("decode alone", round(decoding))
    record_property("forward alone", round(forward))
    record_property("efficiency", round(efficiency, 3))
    record_property("GPU busy, percent", gpu.busy and round(gpu.busy))
    assert IS_REHEARSAL or efficiency >= _LEAST_EFFICIENCY


def _files(trained: Trained, number: int) -> list[bytes]:
    return [content for content, _ in zip(cycle(trained.files), range(number), strict=False)]


def _decoded(program: Program, files: Sequence[bytes]) -> np.ndarray:
    """A batch as the engine makes it."""
    size = program.info.input_size
    batch = program.empty_batch(len(files))
    for row, content in enumerate(files):
        image = decode(content, max_pixels=_LIMITS.max_pixels, target_size=size)
        resize(image, size, out=batch[row])
    return batch


def _until(end: float, values: Sequence[Work]) -> Iterator[Work]:
    """The values, again and again."""
    for value in cycle(values):
        if time.perf_counter() > end:
            return
        yield value


def _rate(work: Callable[[Work], int], batches: Sequence[Work], device) -> float:
    """Images per second of a part of the engine alone, with as many threads as it has."""
    threads = thread_count(device)
    started = time.perf_counter()
    passes = parallel_map(
        work, _until(started + _PART_SECONDS, batches), threads=threads, buffer_size=threads + 1
    )
    return sum(passes) / (time.perf_counter() - started)


def _engine(trained: Trained, program: Program, files) -> Iterator[int]:
    """The number of images of each batch that the engine has scored."""
    contents: dict[int, bytes] = {}

    def items() -> Iterator[Item]:
        for number, content in zip(count(), files, strict=False):
            contents[number] = content
            yield Item(date(2026, 1, 1), number, f"s3://b/{number}", "etag", len(content))

    def fetch(wanted):
        for one in wanted:
            yield DownloadResult(one.key, contents.pop(one.key.image_id), one.key.etag)

    for batch in score(items(), [program], fetch, _LIMITS):
        yield len(batch.predictions)
