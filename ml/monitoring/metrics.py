"""The metrics: what each is called, what it says, and which column of which query it is.

All are gauges. They describe the newest run or night of a stream, or a state, so they fall as well
as rise. Times are moments since 1970; an age is `time() - METRIC`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A gauge with one series per row of a query.

    Attributes:
        name: Its name, with the unit at its end.
        documentation: What it says, for Prometheus and its users.
        query: The file in `ml/monitoring/sql/`.
        column: The column with its value; a row without a value has no series.
        labels: The columns that are its labels.
    """

    name: str
    documentation: str
    query: str
    column: str
    labels: tuple[str, ...] = ("stream",)


METRICS = (
    Metric(
        "nightscore_stream_first_run_timestamp_seconds",
        "When the first run of the last nights was opened.",
        "streams", "first_run",
    ),
    Metric(
        "nightscore_stream_last_finished_timestamp_seconds",
        "When a run last finished; missing for a stream of which none has.",
        "streams", "last_finished",
    ),
    Metric(
        "nightscore_stream_newest_night_timestamp_seconds",
        "Midnight (UTC) of the newest night with a finished run.",
        "streams", "newest_night",
    ),
    Metric(
        "nightscore_stream_open_runs",
        "Runs that are open.",
        "streams", "open_runs",
    ),
    Metric(
        "nightscore_stream_oldest_open_run_timestamp_seconds",
        "When the oldest open run was opened; missing if there is none.",
        "streams", "oldest_open",
    ),
    Metric(
        "nightscore_run_status",
        "1 for the status of the newest run, 0 for the others.",
        "runs", "is_status", ("stream", "status"),
    ),
    Metric(
        "nightscore_run_started_timestamp_seconds",
        "When the newest run was opened.",
        "runs", "started",
    ),
    Metric(
        "nightscore_run_images",
        "Images of the newest run: discovered, and, once it is reconciled, scored and rejected.",
        "images", "images", ("stream", "outcome"),
    ),
    Metric(
        "nightscore_run_stored_images",
        "Images of the newest run whose shard is finished.",
        "shards", "stored_images",
    ),
    Metric(
        "nightscore_run_anomalies",
        "Images of the newest run that an anomaly model flagged; missing until it is reconciled.",
        "runs", "anomalies",
    ),
    Metric(
        "nightscore_run_review_images",
        "Images of the newest run marked for review; missing until it is reconciled.",
        "runs", "to_review",
    ),
    Metric(
        "nightscore_run_images_per_second",
        "Images per second of the newest run, from the start of its first shard to its last end.",
        "runs", "images_per_second",
    ),
    Metric(
        "nightscore_run_engine_images_per_second",
        "Images per second of one worker's engine in the newest run, without starting and storing.",
        "runs", "engine_images_per_second",
    ),
    Metric(
        "nightscore_run_device_busy_ratio",
        "Share of the newest run's time of scoring in which an engine was at work on the device.",
        "devices", "engine_busy", ("stream", "device"),
    ),
    Metric(
        "nightscore_run_stage_seconds",
        "Stages of the newest run: prepare (list, plan, wait for a worker), score, close.",
        "stages", "seconds", ("stream", "stage"),
    ),
    Metric(
        "nightscore_run_shards",
        "Shards of the newest run; failed are those whose last attempt ended with an error.",
        "shards", "shards", ("stream", "state"),
    ),
    Metric(
        "nightscore_run_shard_attempts",
        "Attempts at the shards of the newest run, all together.",
        "shards", "attempts",
    ),
    Metric(
        "nightscore_night_rejected_images",
        "Rejected images of the newest run's night, by reason.",
        "rejections", "images", ("stream", "reason"),
    ),
    Metric(
        "nightscore_schema_revision",
        "The newest migration that the database has had.",
        "schema_revision", "revision", (),
    ),
    Metric(
        "nightscore_schema_needed_revision",
        "The newest migration of the release that serves these metrics.",
        "schema_revision", "needed", (),
    ),
)  # fmt: skip
