"""Each stage of scoring alone, on the same images, with all cores.

`python -m benchmarks.scoring.stages STAGE ... JOB.json` is a contender like the others. It runs one
stage after the other.

Each function prepares what the stage needs and returns the stage itself. Short stages go over the
images again until they have taken a while.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import cache, partial
from itertools import chain

import numpy as np

from benchmarks.scoring.contender import Job, Run, main
from benchmarks.scoring.nightscore import load_program, open_run
from benchmarks.scoring.workloads import NIGHT, WORKLOADS
from ml.config.loading import configuration
from ml.config.schema import Limits
from ml.database.connection import rows, transaction
from ml.images.decoding import decode
from ml.images.rejection import TRANSIENT
from ml.images.resizing import empty_batch, resize
from ml.parallel import batched
from ml.program.program import Program
from ml.scoring.discovery import plan_shards
from ml.scoring.engine import BatchResult, Item, score, thread_count
from ml.scoring.results import Results
from ml.storage.download import DownloadRequest, download
from ml.storage.object_store import object_store

LEAST_SECONDS = 2.0
_LIMITS = Limits()
_DECODED_AT_ONCE = 128
# The versions of these runs must not meet those of the contender, which are the turns.
_NIGHTS = [date.fromisoformat(NIGHT)]
_FIRST_VERSION = 1_000_000


def list_(job: Job) -> Run:
    """The night's folder, page by page."""
    prefix = WORKLOADS[job.workload].prefix
    return _repeated(lambda: sum(len(page) for page in object_store().list_pages(prefix)))


def fetch(job: Job) -> Run:
    """From S3 into memory."""
    requests = _requests(job)
    return _repeated(lambda: sum(1 for _ in download(object_store(), requests)))


def decode_resize(job: Job) -> Run:
    """From files' bytes to batches of pixels of the input size."""
    batches, pool = _files(job, _DECODED_AT_ONCE), ThreadPoolExecutor(job.cores)

    def unpack(contents: list[bytes]) -> np.ndarray:
        return _decode(contents, empty_batch(len(contents), job.input_size))

    return _repeated(lambda: sum(map(len, pool.map(unpack, batches))))


def host_to_device(job: Job) -> Run:
    """Batches of pixels from pinned memory to the GPU; nothing to do on the CPU."""
    if job.device != "cuda":
        return lambda: 0
    import torch

    batches = [torch.from_numpy(pixels) for pixels in _batches(job)]

    def once() -> int:
        for batch in batches:
            batch.to(job.device, non_blocking=True)
        torch.cuda.synchronize()
        return len(job.keys)

    return _repeated(once)


def forward(job: Job) -> Run:
    """The program on batches of pixels, on as many threads as the engine has for it."""
    program = _program(job)
    threads = thread_count("cuda" if job.device == "cuda" else "cpu")
    pool = ThreadPoolExecutor(threads)
    batches = _batches(job)
    predict = partial(program.predict, maps="flagged")
    list(pool.map(predict, batches[:1] * threads))
    return _repeated(lambda: sum(map(len, pool.map(predict, batches))))


def write(job: Job) -> Run:
    """Results into Postgres, heat maps into S3, and the merge of each shard."""
    version = _FIRST_VERSION + job.turn
    program = load_program(job, version)
    run_id = open_run(job, version)
    heatmaps = f"{configuration().storage}/heatmaps/{job.workload}"
    ready: dict[int, list[BatchResult]] = {}
    for shard in plan_shards(run_id):
        with transaction() as session:
            transient = list(TRANSIENT)
            found = rows(
                session,
                "scoring/sql/shard_images",
                run_id=run_id,
                shard=shard,
                transient=transient,
                nights=_NIGHTS,
            )
        items = [Item(**row) for row in found]
        ready[shard] = list(score(items, [program], partial(download, object_store()), _LIMITS))

    def run() -> int:
        for shard, batches in ready.items():
            with Results(run_id, shard, job.workload, heatmaps, _NIGHTS) as results:
                for batch in batches:
                    results.add(batch)
                results.merge(sum(map(len, batches)), 1.0, "cpu")
        return sum(map(len, chain.from_iterable(ready.values())))

    return run


STAGES: dict[str, Callable[[Job], Run]] = {
    "list": list_,
    "fetch": fetch,
    "decode_resize": decode_resize,
    "host_to_device": host_to_device,
    "forward": forward,
    "write": write,
}


def _requests(job: Job) -> list[DownloadRequest[int]]:
    pages = object_store().list_pages(WORKLOADS[job.workload].prefix)
    return [
        DownloadRequest(n, found.uri, found.size, found.etag)
        for n, found in enumerate(chain.from_iterable(pages))
    ]


# What several stages need is made once: all of them are measured by one process.
@cache
def _contents(job: Job) -> list[bytes]:
    """The images' files."""
    found: Iterator[bytes | None] = (d.content for d in download(object_store(), _requests(job)))
    return [content for content in found if content is not None]


def _files(job: Job, count: int) -> list[list[bytes]]:
    """The images' files, in batches of `count`."""
    return list(batched(_contents(job), count))


@cache
def _program(job: Job) -> Program:
    return load_program(job, _FIRST_VERSION)


@cache
def _batches(job: Job) -> list[np.ndarray]:
    """Batches of pixels as the engine makes them, on a GPU in page-locked memory."""
    program = _program(job)
    files = _files(job, program.batch_size)
    with ThreadPoolExecutor(job.cores) as pool:
        return list(pool.map(lambda part: _decode(part, program.empty_batch(len(part))), files))


def _decode(contents: list[bytes], pixels: np.ndarray) -> np.ndarray:
    """Decode images into the rows of `pixels`, uint8 (B, 3, height, width)."""
    size: tuple[int, int] = pixels.shape[2:]
    for row, content in enumerate(contents):
        image = decode(content, max_pixels=_LIMITS.max_pixels, target_size=size)
        resize(image, size, out=pixels[row])
    return pixels


def _repeated(once: Run) -> Run:
    """`once`, again and again until it has taken long enough to be measured."""

    def run() -> int:
        end = time.perf_counter() + LEAST_SECONDS
        count = once()
        while time.perf_counter() < end:
            count += once()
        return count

    return run


if __name__ == "__main__":
    main(*(STAGES[name] for name in sys.argv[1:-1]))
