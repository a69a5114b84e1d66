"""A script in the manner of a notebook: one image after the other.

boto3 fetches, Pillow decodes, the model sees a batch of one, and an INSERT stores 100 rows.
"""

import io

import boto3
import numpy as np
import psycopg2
import torch
from PIL import Image
from psycopg2.extras import execute_values
from torch.export.passes import move_to_device_pass

from benchmarks.scoring.contender import Job, Run, main

ROWS_AN_INSERT = 100


def setup(job: Job) -> Run:
    """Load the program and connect; the run is timed."""
    device = torch.device(job.device)
    exported = torch.export.load(job.program)
    if device.type == "cuda":
        exported = move_to_device_pass(exported, device)
    model = exported.module()
    height, width = job.input_size
    client = boto3.client(
        "s3",
        endpoint_url=job.endpoint,
        aws_access_key_id=job.key_id,
        aws_secret_access_key=job.secret,
        region_name=job.region,
    )
    connection = psycopg2.connect(job.database_url)

    def load(key: str) -> torch.Tensor:
        """uint8 (1, 3, height, width)."""
        content = client.get_object(Bucket=job.bucket, Key=key)["Body"].read()
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()

    @torch.inference_mode()
    def predict(pixels: torch.Tensor) -> tuple[str, float, bool]:
        """Class, score and whether it is flagged."""
        output = model(pixels.to(device))
        if job.task == "classification":
            score, index = output[0].max(0)
            return job.classes[int(index)], float(score), False
        score = float(output[0][0])
        flagged = score >= (job.threshold or 0)
        return job.classes[int(flagged)], score, flagged

    def run() -> int:
        cursor = connection.cursor()
        rows = []
        for key in job.keys:
            rows.append((f"s3://{job.bucket}/{key}", *predict(load(key))))
            if len(rows) == ROWS_AN_INSERT:
                execute_values(cursor, f"INSERT INTO {job.table} VALUES %s", rows)
                rows.clear()
        if rows:
            execute_values(cursor, f"INSERT INTO {job.table} VALUES %s", rows)
        connection.commit()
        return len(job.keys)

    predict(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    return run


if __name__ == "__main__":
    main(setup)
