"""How fast a shard is scored, against a script that takes one image after the other.

Both fetch the same JPEGs from the same local S3 server, decode them, run the same exported program
and store a row an image in the same Postgres; they take turns, and the best turn of each counts.
"""

import argparse
import io
import os
import tempfile
import time
from datetime import date
from pathlib import Path

import boto3
import numpy as np
import psycopg2
import torch
from PIL import Image
from psycopg2.extras import execute_values

from ml import samples
from ml.config import configuration
from ml.database import copy, engine
from ml.models import build
from ml.program import Program, ProgramInfo, export, sha256
from ml.scoring.engine import Item, Limits, score
from ml.settings import settings
from ml.stack.local import LocalStack
from ml.store import object_store, split
from ml.upload import upload

TABLE = "CREATE TEMPORARY TABLE result (uri text, class text, score real)"
PREFIX = "s3://nightscore/benchmark"


def put_images(count: int) -> list[Item]:
    """`count` synthetic moulds in S3, as a listing gives them."""
    random = np.random.default_rng(0)
    kinds = [samples.jpeg(samples.mould(random)) for _ in range(200)]
    content = ((f"{PREFIX}/{n:06}.jpg", kinds[n % len(kinds)]) for n in range(count))
    upload(content, [PREFIX], lambda done: None)
    listed = [found for page in object_store().pages(PREFIX) for found in page]
    return [Item(date(2026, 1, 1), n, f.uri, f.etag, f.size) for n, f in enumerate(listed)]


def program(folder: Path, device: torch.device) -> Program:
    """The reference detector with fresh weights: what it says does not matter here."""
    model = configuration().model("spill-anomaly")
    torch.manual_seed(0)
    classes = ("normal", "anomalous")
    network = build(model.architecture, model.input_size, classes, model.options)
    path = folder / "model.pt2"
    export(network.to(memory_format=torch.channels_last), path, model.input_size)
    info = ProgramInfo("bench", 1, "anomaly", classes, model.input_size, 2.0, sha256(path))
    return Program.load(path, info, device)


def nightscore(items: list[Item], loaded: Program) -> None:
    """The engine, with rows copied as they come."""
    with engine().connect() as connection:
        connection.exec_driver_sql(TABLE)
        for results in score(items, [loaded], object_store().get, Limits(10**7, 10**7)):
            rows = ((r.item.uri, r.predicted_class, r.score) for r in results)
            copy(connection, "result", ("uri", "class", "score"), rows)
        stored = connection.exec_driver_sql("SELECT count(*) FROM result").scalar()
        connection.rollback()
    assert stored == len(items)


def script(items: list[Item], loaded: Program) -> None:
    """One image after the other: boto3, Pillow, a forward pass, an INSERT for each hundred."""
    current = settings()
    client = boto3.client(
        "s3",
        endpoint_url=current.s3_endpoint,
        aws_access_key_id=current.s3_access_key,
        aws_secret_access_key=current.s3_secret_key.get_secret_value(),
        region_name=current.s3_region,
    )
    height, width = loaded.info.input_size
    url = current.require_database_url().replace("+psycopg2", "")
    connection = psycopg2.connect(url)
    cursor = connection.cursor()
    cursor.execute(TABLE)
    waiting: list[tuple[str, str, float]] = []
    for item in items:
        bucket, key = split(item.uri)
        content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        image = Image.open(io.BytesIO(content)).convert("RGB").resize((width, height))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()
        value = float(loaded.predict(pixels).scores[0])
        waiting.append((item.uri, "anomalous" if value >= 2 else "normal", value))
        if len(waiting) == 100 or item is items[-1]:
            execute_values(cursor, "INSERT INTO result VALUES %s", waiting)
            waiting.clear()
    cursor.execute("SELECT count(*) FROM result")
    assert cursor.fetchone() == (len(items),)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="nightscore-bench-") as folder:
        os.environ["NIGHTSCORE_HOME"] = f"{folder}/stack"
        settings.cache_clear()
        stack = LocalStack(Path(folder) / "stack")
        try:
            stack.up(("postgres", "s3"))
            items = put_images(arguments.images)
            loaded = program(Path(folder), device)
            best = {nightscore: float("inf"), script: float("inf")}
            for _ in range(arguments.turns):
                for way in best:
                    started = time.perf_counter()
                    way(items, loaded)
                    best[way] = min(best[way], time.perf_counter() - started)
        finally:
            stack.down()
    print(f"{len(items)} JPEGs of about 50 x 28 pixels, {device}, {os.cpu_count()} cores")
    for way, seconds in best.items():
        print(f"{way.__name__:12} {len(items) / seconds:8.0f} images/s")
    print(f"ratio        {best[script] / best[nightscore]:8.1f}")


if __name__ == "__main__":
    main()
