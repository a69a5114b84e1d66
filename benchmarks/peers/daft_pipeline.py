"""Daft: download, decode and resize as its own expressions, and a class UDF that holds the model.

After its guides on stateful class UDFs, on batches and on images: bytes and pixels stay in Daft's
engine, the class is made once and holds the GPU, its method gets whole batches, the order of rows
is given up, and the results are read as they come. What the guides leave open was tried on two
cores: more connections, other batches, more instances and a process for each were no faster.
"""

import io
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

# Daft asks when it is imported.
os.environ |= {"DO_NOT_TRACK": "1", "DAFT_PROGRESS_BAR": "0"}

import daft
import psycopg2
import torch
from daft import DataType, Series
from daft.functions import decode_image, download, resize
from daft.io import IOConfig, S3Config
from torch.export.passes import move_to_device_pass

from benchmarks.scoring.contender import Job, Run, main

_FEW = 512  # images of the warm-up
_RESULT = DataType.struct(
    {"name": DataType.string(), "score": DataType.float32(), "flagged": DataType.bool()}
)


@cache
def load_model(program: str, device: str) -> Any:
    """The exported program on the device, loaded once, before the time is taken."""
    exported = torch.export.load(program)
    if device == "cuda":
        exported = move_to_device_pass(exported, torch.device(device))
    return exported.module()


class Predictor:
    """The model in Daft's engine; `predict` scores a batch of images."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = load_model(job.program, job.device)

    @daft.method.batch(return_dtype=_RESULT, batch_size=256)
    @torch.inference_mode()
    def predict(self, images: Series) -> list[dict[str, Any]]:
        """Class, score and flag of each image."""
        height, width = self.job.input_size
        # Images of one size lie in one buffer, one after the other: uint8 (B, height, width, 3).
        values = images.to_arrow().storage.flatten().to_numpy()
        pixels = torch.from_numpy(values.reshape(-1, height, width, 3)).permute(0, 3, 1, 2)
        output = self.model(pixels.to(self.job.device))
        if self.job.task == "classification":
            scores, found = output.max(1)
            flags = torch.zeros_like(found, dtype=torch.bool)
        else:
            scores = output[0]
            found = flags = scores >= self.job.threshold
        names = (self.job.classes[int(index)] for index in found.tolist())
        rows = zip(names, scores.tolist(), flags.tolist(), strict=True)
        return [{"name": name, "score": score, "flagged": flag} for name, score, flag in rows]


def predictions(job: Job, keys: tuple[str, ...]) -> daft.DataFrame:
    """Columns uri and found, the result of each image; nothing runs yet."""
    s3 = S3Config(
        endpoint_url=job.endpoint,
        key_id=job.key_id,
        access_key=job.secret,
        region_name=job.region,
        use_ssl=job.endpoint.startswith("https"),
    )
    height, width = job.input_size
    # In this process: Daft's threads need no Python, and another process gets copies of all pixels.
    on_gpu = job.device == "cuda"
    made = daft.cls(gpus=1 if on_gpu else 0, max_concurrency=1, use_process=False)(Predictor)
    images = daft.from_pydict({"uri": [f"s3://{job.bucket}/{key}" for key in keys]})
    content = download(images["uri"], io_config=IOConfig(s3=s3))
    pixels = resize(decode_image(content, mode="RGB"), w=width, h=height)
    return images.select("uri", made(job).predict(pixels).alias("found"))


def lines(job: Job, keys: tuple[str, ...]) -> Iterator[str]:
    """Rows for COPY, a batch at a time, as soon as they are there."""
    for batch in predictions(job, keys).to_arrow_iter():
        rows = batch.to_pylist()
        yield "".join("\t".join(map(str, (r["uri"], *r["found"].values()))) + "\n" for r in rows)


def setup(job: Job) -> Run:
    """Load the model, score a few images so that Daft has started, and connect."""
    daft.set_execution_config(maintain_order=False)
    load_model(job.program, job.device)
    for _ in lines(job, job.keys[:_FEW]):
        pass
    connection = psycopg2.connect(job.database_url)

    def run() -> int:
        with connection, connection.cursor() as cursor:
            for text in lines(job, job.keys):
                cursor.copy_expert(f"COPY {job.table} FROM STDIN", io.StringIO(text))
        return len(job.keys)

    return run


if __name__ == "__main__":
    main(setup)
    # Daft's threads now and then abort a Python that ends while they run; all was reported.
    os._exit(0)
