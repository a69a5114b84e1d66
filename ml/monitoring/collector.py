"""What Prometheus collects: the metrics, read from Postgres at each scrape."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ml.database.connection import rows
from ml.database.schema import release_revision
from ml.images.rejection import Reason
from ml.monitoring.metrics import METRICS, Metric
from ml.settings import settings

log = logging.getLogger(__name__)

# Runs of older nights are left out, and with them streams that are no longer scored.
NIGHTS = 90

Rows = list[Mapping[str, Any]]


class PostgresCollector(Collector):
    """Reads all metrics with the analyst's login, in one connection per scrape.

    A scrape always succeeds: without an answer from Postgres it has `nightscore_up` 0 and nothing
    else of it, so that an old value is never taken for a new one.

    Args:
        url: The analyst's database URL.
        timeout_s: The time to connect, and the time for all queries.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._engine = sa.create_engine(
            url,
            poolclass=sa.NullPool,
            isolation_level="REPEATABLE READ",
            connect_args={
                "application_name": "nightscore metrics",
                "connect_timeout": math.ceil(timeout_s),
                "options": f"-c statement_timeout={math.ceil(timeout_s * 1000)}",
            },
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the metrics as they are now."""
        started = time.monotonic()
        try:
            with self._engine.connect() as connection:
                results = _query(connection, deadline=time.monotonic() + self._timeout_s)
        except (sa.exc.SQLAlchemyError, TimeoutError) as error:
            log.warning("Postgres gives no metrics: %s", " ".join(str(error).split())[:300])
            results = {}
        yield _gauge("nightscore_up", "1 if Postgres answered all queries.", bool(results))
        yield _gauge(
            "nightscore_scrape_seconds",
            "How long the queries took.",
            time.monotonic() - started,
        )
        for metric in METRICS if results else ():
            yield _family(metric, results[metric.query])


def registry(timeout_s: float) -> CollectorRegistry:
    """Return a registry with the metrics of the database that the analyst's URL names.

    Args:
        timeout_s: The time to connect, and the time for all queries.

    Raises:
        ConfigurationError: The URL is not set.
    """
    registry = CollectorRegistry()
    registry.register(PostgresCollector(settings().require_analyst_url(), timeout_s))
    return registry


def _query(connection: sa.Connection, deadline: float) -> dict[str, Rows]:
    """Run all queries; returns their rows by the name of the query."""

    def read(query: str, **parameters: Any) -> Rows:
        if time.monotonic() > deadline:
            raise TimeoutError("the queries take too long")
        return rows(connection, query, **parameters)

    newest = read("monitoring/sql/newest_runs", nights=NIGHTS)
    run_ids = [run["run_id"] for run in newest]
    nights = list({run["night"] for run in newest})
    return {
        "streams": read("monitoring/sql/streams", nights=NIGHTS),
        "runs": read("monitoring/sql/runs", run_ids=run_ids),
        "images": read("monitoring/sql/images", run_ids=run_ids),
        "shards": read("monitoring/sql/shards", run_ids=run_ids),
        "devices": read("monitoring/sql/devices", run_ids=run_ids),
        "stages": read("monitoring/sql/stages", run_ids=run_ids),
        "rejections": _rejections(newest, read("monitoring/sql/rejections", nights=nights)),
        "schema_revision": read("monitoring/sql/schema_revision", needed=release_revision()),
    }


def _rejections(newest: Rows, counted: Rows) -> Rows:
    """The rejected images of each newest run's night by reason, also those that are none."""
    images = {(run["stream"], str(reason)): 0 for run in newest for reason in Reason}
    nights = {(run["stream"], run["night"]) for run in newest}
    for row in counted:
        if (row["stream"], row["night"]) in nights:
            images[row["stream"], row["reason"]] = row["images"]
    return [
        {"stream": stream, "reason": reason, "images": number}
        for (stream, reason), number in images.items()
    ]


def _family(metric: Metric, results: Rows) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.documentation, labels=metric.labels)
    # Rows that differ in another metric's label have the same value.
    values = {tuple(row[label] for label in metric.labels): row[metric.column] for row in results}
    for labels, value in values.items():
        if value is not None:
            family.add_metric(labels, float(value))
    return family


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value=value)
