"""The tables of schema `nightscore`, as classes of SQLAlchemy.

The migrations in `ml/database/migrations/versions/*.sql` make the tables; a test compares the two.
Code reads and writes small tables through these classes. The large ones (image, manifest,
prediction, rejection) are filled by COPY and by the set-based statements in `ml/scoring/sql/`.
"""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import REAL, BigInteger, Double, ForeignKey, Identity, MetaData, Text, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "nightscore"
OPEN, FINISHED, FAILED = "open", "finished", "failed"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
PENDING, DONE, ABANDONED = "pending", "done", "abandoned"


class Base(DeclarativeBase):
    """The base class of all tables."""

    metadata = MetaData(schema=SCHEMA)
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy reads a plain class attribute
        datetime: TIMESTAMP(timezone=True),
        str: Text,
    }


class ScoringRun(Base):
    """One attempt at a night; `ScoringRunModel` has its versions."""

    __tablename__ = "scoring_run"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    trigger: Mapped[str] = mapped_column(unique=True)
    stream: Mapped[str]
    night: Mapped[date]
    status: Mapped[str]
    lookback_from: Mapped[date]
    max_rejected_share: Mapped[float] = mapped_column(REAL)
    shard_size: Mapped[int]
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
    discovered: Mapped[int | None] = mapped_column(BigInteger)
    scored: Mapped[int | None] = mapped_column(BigInteger)
    rejected: Mapped[int | None] = mapped_column(BigInteger)
    anomalies: Mapped[int | None] = mapped_column(BigInteger)
    to_review: Mapped[int | None] = mapped_column(BigInteger)
    synthetic: Mapped[bool] = mapped_column(server_default="false")
    error: Mapped[str | None]
    report_uri: Mapped[str | None]


class ScoringRunModel(Base):
    """A model version that a run was opened with."""

    __tablename__ = "scoring_run_model"

    run_id: Mapped[UUID] = mapped_column(ForeignKey(ScoringRun.run_id), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]


class Shard(Base):
    """A slice of a run's manifest.

    `started_at` is the start of the first attempt, and `error` the error of the last. The attempt
    that finished scored `engine_images` images in `engine_seconds`, from the request of the first
    image to the result of the last, on `device`. Its images are of the nights from `first_night` to
    `last_night`, which are null for older shards.
    """

    __tablename__ = "shard"

    run_id: Mapped[UUID] = mapped_column(ForeignKey(ScoringRun.run_id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    images: Mapped[int]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]
    engine_images: Mapped[int | None] = mapped_column(BigInteger)
    engine_seconds: Mapped[float | None] = mapped_column(Double)
    device: Mapped[str | None]
    first_night: Mapped[date | None]
    last_night: Mapped[date | None]


class Camera(Base):
    """A group of a stream's images, taken out of their keys; an empty text is no such group."""

    __tablename__ = "camera"

    camera_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    stream: Mapped[str]
    camera: Mapped[str]
    line: Mapped[str] = mapped_column(server_default="")
    product: Mapped[str] = mapped_column(server_default="")
    first_seen: Mapped[datetime] = mapped_column(server_default=func.now())


class Image(Base):
    """An image as discovered: a URI and one content of it (ETag)."""

    __tablename__ = "image"

    night: Mapped[date] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    stream: Mapped[str]
    uri: Mapped[str]
    etag: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    modified: Mapped[datetime]
    discovered_at: Mapped[datetime] = mapped_column(server_default=func.now())
    camera_id: Mapped[int | None]


class Manifest(Base):
    """An image that a run has to score."""

    __tablename__ = "manifest"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    night: Mapped[date] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    shard: Mapped[int]


class Prediction(Base):
    """The result of a version for an image.

    `confidence` is set for the task classification. `score`, `threshold` and `flagged` are set for
    the task anomaly, `novelty` and `review` if the version has a novelty, too.
    """

    __tablename__ = "prediction"

    night: Mapped[date] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
    predicted_class: Mapped[str]
    confidence: Mapped[float | None] = mapped_column(REAL)
    score: Mapped[float | None] = mapped_column(REAL)
    threshold: Mapped[float | None] = mapped_column(REAL)
    flagged: Mapped[bool] = mapped_column(server_default="false")
    heatmap_uri: Mapped[str | None]
    novelty: Mapped[float | None] = mapped_column(REAL)
    review: Mapped[bool] = mapped_column(server_default="false")
    scored_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Rejection(Base):
    """An image that a version could not score, and why."""

    __tablename__ = "rejection"

    night: Mapped[date] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
    reason: Mapped[str]
    detail: Mapped[str] = mapped_column(server_default="")
    rejected_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ClassSum(Base):
    """How many images a version put into a class.

    `confidence` is their sum, null for an anomaly model. Like the other two sums, it is kept by
    triggers. Camera 0 stands for none.
    """

    __tablename__ = "class_sum"

    night: Mapped[date] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    camera_id: Mapped[int] = mapped_column(primary_key=True)
    predicted_class: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[int] = mapped_column(BigInteger)
    flagged: Mapped[int] = mapped_column(BigInteger)
    review: Mapped[int] = mapped_column(BigInteger)
    confidence: Mapped[float | None] = mapped_column(Double)


class ScoreSum(Base):
    """How many images have a score, or a confidence, in a bin of `reference_edges`."""

    __tablename__ = "score_sum"

    night: Mapped[date] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    camera_id: Mapped[int] = mapped_column(primary_key=True)
    bin: Mapped[int] = mapped_column(primary_key=True)
    images: Mapped[int] = mapped_column(BigInteger)


class RejectionSum(Base):
    """How many images a version rejected for a reason."""

    __tablename__ = "rejection_sum"

    night: Mapped[date] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    camera_id: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[int] = mapped_column(BigInteger)


class ModelVersion(Base):
    """A registered version: the facts of MLflow, for SQL, and the distribution of its scores.

    - `reference_edges`: the inner edges of the bins of the held-out scores.
    - `reference_shares`: the share of held-out images in each bin, one more than there are edges.
    - `gate`: the decision, an `ml.evaluation.gate.Decision`.
    - `threshold_detail`: an `ml.training.thresholds.ChosenThreshold`.
    - `program`: an `ml.program.info.ProgramInfo`, to which a program must conform when it is
      loaded; null for a version that was registered before the column existed.
    - `openvino_sha256`, `openvino_version`: an `ml.program.info.ConvertedInfo`; null if the program
      was not converted.
    - `deleted_at`: when retention began to delete the version in MLflow; null while it can be
      loaded.
    """

    __tablename__ = "model_version"

    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[str]
    mlflow_run_id: Mapped[str]
    program_sha256: Mapped[str]
    program: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    snapshot_uri: Mapped[str]
    metrics: Mapped[dict[str, Any]] = mapped_column(JSONB)
    threshold: Mapped[float | None] = mapped_column(Double)
    threshold_detail: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    novelty_threshold: Mapped[float | None] = mapped_column(Double)
    classes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    reference_edges: Mapped[list[float]] = mapped_column(ARRAY(Double))
    reference_shares: Mapped[list[float]] = mapped_column(ARRAY(Double))
    synthetic: Mapped[bool]
    gate_passed: Mapped[bool]
    gate_reason: Mapped[str]
    gate: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    registered_at: Mapped[datetime] = mapped_column(server_default=func.now())
    openvino_sha256: Mapped[str | None]
    openvino_version: Mapped[str | None]
    deleted_at: Mapped[datetime | None]


class ModelAlias(Base):
    """The version that an alias names; written together with MLflow's own alias."""

    __tablename__ = "model_alias"

    model: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    set_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Maintenance(Base):
    """A deletion of what had passed its limit, an `ml.retention.candidate.Candidate`.

    `finished_at` is null while it runs, and stays so when the process is killed. `error` says why
    it failed.
    """

    __tablename__ = "maintenance"

    maintenance_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    stream: Mapped[str | None]
    night: Mapped[date | None]
    items: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str]
    deleted_by: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    finished_at: Mapped[datetime | None]
    error: Mapped[str | None]


class Promotion(Base):
    """A change of champion: `action` is `promote`, `rollback`, or `outside` (of Nightscore).

    `state` is pending before and while MLflow is called, and done afterwards. It is abandoned if
    the call did not reach MLflow.
    """

    __tablename__ = "promotion"

    promotion_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    model: Mapped[str]
    version: Mapped[int]
    replaced: Mapped[int | None]
    action: Mapped[str]
    reason: Mapped[str]
    promoted_by: Mapped[str]
    promoted_at: Mapped[datetime] = mapped_column(server_default=func.now())
    state: Mapped[str] = mapped_column(server_default="done")
