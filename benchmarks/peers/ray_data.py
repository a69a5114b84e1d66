"""Ray Data: `read_images`, a model in actors by `map_batches`, and a COPY for each block of rows.

After its guides "Performance tips and tuning" and "Offline batch inference": a class holds the
model, an actor a GPU or for every two cores, blocks between 1 and 128 MB, rows that leave the
images behind, results in any order. What the guides leave open was chosen by measurement.
"""

import io
import logging
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg2
import ray
import torch
from pyarrow.fs import S3FileSystem
from torch.export.passes import move_to_device_pass

from benchmarks.scoring.contender import Job, Run, main


class Predictor:
    """The model in an actor. It waits for the file `go`, so that no actor's start is timed."""

    def __init__(self, job: Job, gate: Path) -> None:
        self.job = job
        self.device = torch.device(job.device)
        exported = torch.export.load(job.program)
        if self.device.type == "cuda":
            exported = move_to_device_pass(exported, self.device)
        self.model: Any = exported.module()
        self.model(torch.zeros(64, 3, *job.input_size, dtype=torch.uint8, device=self.device))
        (gate / f"actor-{os.getpid()}").touch()
        while not (gate / "go").exists():
            time.sleep(0.002)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score a batch; its column `image` holds uint8 (B, H, W, 3)."""
        pixels = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2)
        output = self.model(pixels.to(self.device))
        if self.job.task == "classification":
            scores, found = output.max(1)
            flags = torch.zeros_like(found, dtype=torch.bool)
        else:
            scores = output[0]
            found = flags = scores >= self.job.threshold
        names = np.array([self.job.classes[int(index)] for index in found.tolist()])
        columns = {"score": scores.cpu().numpy(), "flagged": flags.cpu().numpy()}
        return {"path": batch["path"], "name": names, **columns}


def images(job: Job, keys: tuple[str, ...]) -> ray.data.Dataset:
    """Columns image, uint8 (height, width, 3), and path, BUCKET/KEY."""
    endpoint = urlsplit(job.endpoint)
    filesystem = S3FileSystem(
        access_key=job.key_id,
        secret_key=job.secret,
        region=job.region,
        scheme=endpoint.scheme,
        endpoint_override=endpoint.netloc,
    )
    height, width = job.input_size
    # Few large blocks were fastest: two for each core, unless they exceed the 128 MB of the guide.
    blocks = max(2 * job.cores, len(keys) * height * width * 3 // 100_000_000)
    return ray.data.read_images(
        [f"{job.bucket}/{key}" for key in keys],
        filesystem=filesystem,
        size=job.input_size,
        mode="RGB",
        include_paths=True,
        override_num_blocks=blocks,
    )


def setup(job: Job) -> Run:
    """Start Ray and its actors; the run is timed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=job.cores, include_dashboard=False, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 600
    on_gpu = job.device == "cuda"
    actors = 1 if on_gpu else max(1, job.cores // 2)
    gate = Path(tempfile.mkdtemp(prefix="gate-", dir=Path(job.program).parent))
    predictions = images(job, job.keys).map_batches(
        Predictor,
        fn_constructor_args=(job, gate),
        batch_size=256 if on_gpu else 64,
        num_cpus=None if on_gpu else 1,
        num_gpus=1 if on_gpu else None,
        concurrency=actors,
    )
    connection = psycopg2.connect(job.database_url)

    def store() -> int:
        with connection, connection.cursor() as cursor:
            for block in predictions.iter_batches(batch_size=None):
                columns = (block[name].tolist() for name in ("path", "name", "score", "flagged"))
                rows = zip(*columns, strict=True)
                lines = "".join("s3://" + "\t".join(map(str, row)) + "\n" for row in rows)
                cursor.copy_expert(f"COPY {job.table} FROM STDIN", io.StringIO(lines))
        return len(job.keys)

    # Nothing is read before all actors have started, and they wait for `go`.
    running = ThreadPoolExecutor(1).submit(store)
    while len(list(gate.glob("actor-*"))) < actors and not running.done():
        time.sleep(0.01)
    images(job, job.keys[: 32 * job.cores]).materialize()

    def run() -> int:
        (gate / "go").touch()
        return running.result()

    return run


if __name__ == "__main__":
    main(setup)
