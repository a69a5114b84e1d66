"""The strongest version written by hand.

A DataLoader whose workers make whole batches, each with 16 threads that fetch with boto3 and
decode, and a COPY for each batch of rows.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import numpy as np
import psycopg2
import torch
from botocore.config import Config
from PIL import Image
from torch.export.passes import move_to_device_pass
from torch.utils.data import DataLoader, Dataset

from benchmarks.scoring.contender import Job, Run, main

THREADS = 16


class Batches(Dataset[tuple[list[str], torch.Tensor]]):
    """URIs and uint8 (B, 3, height, width) of each batch."""

    def __init__(self, job: Job, size: int) -> None:
        self.job = job
        self.size = size
        self.pool: ThreadPoolExecutor | None = None
        self.client: Any = None

    def __len__(self) -> int:
        return -(-len(self.job.keys) // self.size)

    def __getitem__(self, index: int) -> tuple[list[str], torch.Tensor]:
        if self.pool is None:  # neither threads nor a client survive the fork
            self.pool = ThreadPoolExecutor(THREADS)
            self.client = boto3.client(
                "s3",
                endpoint_url=self.job.endpoint,
                aws_access_key_id=self.job.key_id,
                aws_secret_access_key=self.job.secret,
                region_name=self.job.region,
                config=Config(max_pool_connections=THREADS),
            )
        keys = self.job.keys[index * self.size : (index + 1) * self.size]
        pixels = np.stack(list(self.pool.map(self._load, keys)))
        uris = [f"s3://{self.job.bucket}/{key}" for key in keys]
        return uris, torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _load(self, key: str) -> np.ndarray:
        """uint8 (height, width, 3)."""
        content = self.client.get_object(Bucket=self.job.bucket, Key=key)["Body"].read()
        height, width = self.job.input_size
        image = Image.open(io.BytesIO(content)).convert("RGB")
        return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def setup(job: Job) -> Run:
    """Load the program and connect; the run is timed."""
    device = torch.device(job.device)
    on_gpu = device.type == "cuda"
    batch = 256 if on_gpu else 64
    exported = torch.export.load(job.program)
    if on_gpu:
        exported = move_to_device_pass(exported, device)
    model = exported.module()
    connection = psycopg2.connect(job.database_url)

    @torch.inference_mode()
    def predict(pixels: torch.Tensor) -> tuple[list[str], list[float], list[bool]]:
        """Classes, scores and flags of a batch."""
        output = model(pixels.to(device, non_blocking=True))
        if job.task == "classification":
            scores, found = output.max(1)
            names = [job.classes[index] for index in found.tolist()]
            return names, scores.tolist(), [False] * len(names)
        flags = (output[0] >= job.threshold).tolist()
        return [job.classes[int(flag)] for flag in flags], output[0].tolist(), flags

    def run() -> int:
        loader = DataLoader(
            Batches(job, batch), batch_size=None, num_workers=job.cores, pin_memory=on_gpu
        )
        with connection, connection.cursor() as cursor:
            for uris, pixels in loader:
                rows = zip(uris, *predict(pixels), strict=True)
                lines = "".join("\t".join(map(str, row)) + "\n" for row in rows)
                cursor.copy_expert(f"COPY {job.table} FROM STDIN", io.StringIO(lines))
        return len(job.keys)

    predict(torch.zeros(batch, 3, *job.input_size, dtype=torch.uint8))
    return run


if __name__ == "__main__":
    main(setup)
