"""The usual pipeline: a torch DataLoader and SQLAlchemy's ORM.

The workers fetch with boto3 and decode with Pillow, one image at a time.
"""

import io
from typing import Any

import boto3
import numpy as np
import torch
from PIL import Image
from sqlalchemy import REAL, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from torch.export.passes import move_to_device_pass
from torch.utils.data import DataLoader, Dataset

from benchmarks.scoring.contender import Job, Run, main

BATCH = 64


class Images(Dataset[tuple[str, torch.Tensor]]):
    """URI and uint8 (3, height, width) of each image."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.client: Any = None

    def __len__(self) -> int:
        return len(self.job.keys)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        job, key = self.job, self.job.keys[index]
        if self.client is None:  # a client does not survive the fork, so each worker makes its own
            self.client = boto3.client(
                "s3",
                endpoint_url=job.endpoint,
                aws_access_key_id=job.key_id,
                aws_secret_access_key=job.secret,
                region_name=job.region,
            )
        content = self.client.get_object(Bucket=job.bucket, Key=key)["Body"].read()
        height, width = job.input_size
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return f"s3://{job.bucket}/{key}", pixels


class Base(DeclarativeBase):
    """Of the mapped classes."""


def row_class(table: str) -> Any:
    """The mapped class of the table SCHEMA.NAME."""
    schema, name = table.split(".")

    class Row(Base):
        __tablename__ = name
        __table_args__ = {"schema": schema}  # noqa: RUF012

        uri: Mapped[str] = mapped_column(primary_key=True)
        predicted_class: Mapped[str]
        score: Mapped[float] = mapped_column(REAL)
        flagged: Mapped[bool]

    return Row


def setup(job: Job) -> Run:
    """Load the program and connect; the run is timed."""
    device = torch.device(job.device)
    on_gpu = device.type == "cuda"
    exported = torch.export.load(job.program)
    if on_gpu:
        exported = move_to_device_pass(exported, device)
    model = exported.module()
    engine = create_engine(make_url(job.database_url).set(drivername="postgresql+psycopg2"))
    row = row_class(job.table)

    @torch.inference_mode()
    def predict(pixels: torch.Tensor) -> list[dict[str, Any]]:
        """A row, less its URI, for each image of a batch."""
        output = model(pixels.to(device, non_blocking=True))
        if job.task == "classification":
            scores, found = output.max(1)
            flags = [False] * len(scores)
        else:
            scores = output[0]
            found = scores >= job.threshold
            flags = found.tolist()
        return [
            {"predicted_class": job.classes[int(index)], "score": score, "flagged": flagged}
            for index, score, flagged in zip(found.tolist(), scores.tolist(), flags, strict=True)
        ]

    def run() -> int:
        loader = DataLoader(Images(job), batch_size=BATCH, num_workers=job.cores, pin_memory=on_gpu)
        with Session(engine) as session:
            for uris, pixels in loader:
                predictions = zip(uris, predict(pixels), strict=True)
                session.add_all(row(uri=uri, **values) for uri, values in predictions)
                session.commit()
        return len(job.keys)

    predict(torch.zeros(BATCH, 3, *job.input_size, dtype=torch.uint8))
    with engine.connect():
        return run


if __name__ == "__main__":
    main(setup)
