"""What a stream's images cost: measured in its own tables, or the documented defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ml.config.loading import configuration
from ml.database.connection import rows, transaction

# Runs that are looked at, and partitions of each table.
_MOST_RUNS = 10
_MOST_PARTITIONS = 3
_LEAST_ROWS = 1000

MEASURED, DEFAULT = "measured", "default"
# The seconds of an image on 2 cores: a straight line through what the README states, 5,539 images
# per second of 1 kB and 274 of 360 kB.
_IMAGE_S, _BYTE_S = 0.000_18, 9.7e-9


@dataclass(frozen=True)
class Costs:
    """The costs of a stream's images. The defaults are those of docs/capacity.md.

    Attributes:
        cpu_images_per_second: that one worker process scores on the cores of its machine.
        gpu_images_per_second: the same with one GPU; None if no GPU has scored the stream.
        shard_seconds: of a shard outside of the engine.
        outside_seconds_per_image: of a run outside of its shards: listing, manifest, counting.
        models: results per image.
        rejected_share: rejections per image.
        heatmap_share: heat maps per image.
        image_row_bytes: of Postgres, with indexes, as the next three.
        prediction_row_bytes: the same.
        rejection_row_bytes: the same.
        manifest_row_bytes: the same.
        sources: attribute → `measured` or `default`.
        runs: how many runs were looked at.
    """

    cpu_images_per_second: float = 5_500.0
    gpu_images_per_second: float | None = None
    shard_seconds: float = 2.0
    outside_seconds_per_image: float = 0.000_05
    models: int = 1
    rejected_share: float = 0.001
    heatmap_share: float = 0.01
    image_row_bytes: float = 393.0
    prediction_row_bytes: float = 160.0
    rejection_row_bytes: float = 200.0
    manifest_row_bytes: float = 127.0
    sources: Mapping[str, str] = field(default_factory=dict)
    runs: int = 0


def default_rate(bytes_per_image: int) -> float:
    """Return images per second on 2 cores, for images of which nothing was measured."""
    return 1 / (_IMAGE_S + _BYTE_S * bytes_per_image)


def read(stream: str, bytes_per_image: int) -> Costs:
    """Return the costs of a stream: what its newest runs measured, defaults for what they did not.

    Args:
        stream: a stream of nightscore.yaml; empty for the defaults.
        bytes_per_image: the size of its images, for the default rate.

    Raises:
        ConfigurationError: there is no such stream.
        ServiceError: Postgres failed.
    """
    if not stream:
        return _with_sources({}, bytes_per_image)
    models = len(configuration().stream(stream).models)
    with transaction() as session:
        newest = {"stream": stream, "most": _MOST_RUNS}
        engine = {row["kind"]: row for row in rows(session, "capacity/sql/engine", **newest)}
        night = rows(session, "capacity/sql/night", **newest)[0]
        sizes = rows(
            session, "capacity/sql/row_sizes", least_rows=_LEAST_ROWS, most=_MOST_PARTITIONS
        )
    measured: dict[str, Any] = {"models": models, **_of_engine(engine), **_of_night(night)}
    measured |= {f"{row['name']}_row_bytes": row["bytes_per_row"] for row in sizes}
    return replace(_with_sources(measured, bytes_per_image), runs=night["runs"])


def _with_sources(measured: Mapping[str, Any], bytes_per_image: int) -> Costs:
    names = [name for name in Costs.__dataclass_fields__ if name not in ("sources", "runs")]
    sources = {name: MEASURED if name in measured else DEFAULT for name in names}
    rate = {"cpu_images_per_second": default_rate(bytes_per_image)}
    return Costs(**{**rate, **measured}, sources=sources)


def _of_engine(engine: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    measured = {
        f"{kind}_images_per_second": float(row["images"]) / row["engine_seconds"]
        for kind, row in engine.items()
    }
    shards = sum(row["shards"] for row in engine.values())
    if shards:
        overhead = sum(row["overhead_seconds"] for row in engine.values())
        measured["shard_seconds"] = max(overhead, 0.0) / shards
    return measured


def _of_night(night: Mapping[str, Any]) -> dict[str, float]:
    images = float(night["images"])
    if not images:
        return {}
    return {
        "outside_seconds_per_image": max(night["outside_seconds"], 0.0) / images,
        "rejected_share": float(night["rejected"]) / images,
        "heatmap_share": float(night["anomalies"]) / images,
    }
