"""The schema of `nightscore.yaml`: streams and models, checked once when the file is read.

The file holds no secrets and no addresses of services; those come from the environment
(`ml.settings`). DAG files read it when they are parsed, so this module imports nothing heavy.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ml.config.architectures import architectures, options_model
from ml.config.cron import Cron
from ml.config.key_pattern import key_pattern
from ml.config.resources import ModelResources, Resources, StreamResources
from ml.config.retention import ModelRetention, Retention, StreamRetention, overridden
from ml.config.section import Section
from ml.errors import ConfigurationError

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
# Of the URIs of objects, as `ml.storage.clients` knows them.
SCHEMES = ("s3",)
FOLDER_URI = rf"^({'|'.join(SCHEMES)})://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](/[^/]+)*$"
# The limit for labelled images, and for those of a stream that sets no limit.
MAX_PIXELS = 64_000_000


SectionT = TypeVar("SectionT", bound=Section)

# The held-out metrics (`ml.evaluation.metrics`) that a gate can compare: a larger value is better.
# The first is the default.
GATE_METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "anomaly": ("auroc", "average_precision", "tpr", "tnr"),
}


def _check_key_pattern(pattern: str) -> str:
    key_pattern(pattern)
    return pattern


def _check_architecture(name: str) -> str:
    if name not in architectures():
        raise ValueError(
            f"there is no architecture {name!r}; allowed: {', '.join(architectures())}"
        )
    return name


Name = Annotated[str, Field(pattern=NAME)]
Prefix = Annotated[str, Field(pattern=FOLDER_URI)]
Pattern = Annotated[str, AfterValidator(_check_key_pattern)]
Share = Annotated[float, Field(ge=0, le=1)]


def _error_at(path: str, message: str) -> PydanticCustomError:
    """Return an error that involves several keys, to be reported at one of them (`path`)."""
    return PydanticCustomError("at_path", "{message}", {"message": message, "path": path})


class Limits(Section):
    """The largest images that are decoded; larger ones are rejected."""

    max_pixels: int = Field(MAX_PIXELS, gt=0, description="width x height, pixels")
    max_bytes: int = Field(64 * 1024 * 1024, gt=0, description="size of the object, bytes")


class Stream(Section):
    """A source of images below one S3 prefix, and how its nights are scored."""

    prefix: Prefix
    schedule: Cron | None = None
    models: Annotated[list[Name], Field(min_length=1)]
    key_pattern: Pattern | None = Field(
        None, description="finds the camera in a key below the night's folder (RE2)"
    )
    lookback_nights: int = Field(3, ge=0, le=366)
    shard_size: int = Field(50_000, ge=1, le=1_000_000)
    shards_per_task: int | None = Field(
        None, ge=1, le=500, description="scored by one process; None selects automatically"
    )
    max_rejected_share: Share = 0.5
    rescore_nights: int = Field(0, ge=0, le=366)
    limits: Limits = Limits()
    resources: StreamResources = StreamResources()
    retention: StreamRetention = StreamRetention()


class Training(Section):
    """Training parameters for one class of device."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    processes: int = Field(1, ge=1, le=64, description="on one machine, each with its own GPU")


class Gate(Section):
    """The conditions, on the held-out images, under which a challenger becomes champion."""

    metric: str = ""
    minimum: float = Field(0.0, description="lower limit of the metric")
    minimum_recall: Share = Field(0.0, description="lower limit of each class's recall")
    max_drop: float = Field(0.01, ge=0, description="margin of non-inferiority to the champion")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the test of non-inferiority")


class Threshold(Section):
    """How an anomaly model's threshold is chosen from its held-out images.

    Policies:

    - `midpoint`: halfway between a high quantile of the normal scores and a low quantile of the
      anomalous scores; needs calibration anomalies.
    - `target_fpr`: the quantile of the normal scores that gives the target false-positive rate.
    - `cost`: the least expected cost of misses and false alarms; needs calibration anomalies.
    """

    policy: Literal["midpoint", "target_fpr", "cost"] = "midpoint"
    target_fpr: float = Field(0.01, gt=0, lt=1)
    normal_quantile: float = Field(0.99, gt=0, lt=1)
    anomalous_quantile: float = Field(0.05, gt=0, lt=1)
    miss_cost: float = Field(10.0, gt=0, description="of an anomaly that is not flagged")
    false_alarm_cost: float = Field(1.0, gt=0, description="of a normal image that is flagged")
    anomaly_share: float = Field(0.01, gt=0, lt=1, description="anomalies among a night's images")
    review_share: float = Field(
        0.01, gt=0, lt=1, description="held-out normal images that are marked for review"
    )


class Model(Section):
    """A registered model: its data set, its training, and when a new version is promoted."""

    task: Literal["classification", "anomaly"]
    dataset: Name
    architecture: Annotated[str, AfterValidator(_check_architecture)]
    input_size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = Field(
        description="height, width in pixels"
    )
    schedule: Cron | None = None
    seed: int = 0
    holdout_share: float = Field(0.1, gt=0, lt=0.5)
    holdout_by: Literal["image", "scene"] = "image"
    options: dict[str, Any] = Field(default_factory=dict)
    training: dict[Literal["cpu", "gpu"], Training]
    gate: Gate = Gate()
    threshold: Threshold = Threshold()
    resources: ModelResources = ModelResources()
    retention: ModelRetention = ModelRetention()

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "architecture" in info.data:  # else its own error is reported
            options_model(info.data["architecture"]).model_validate(options)
        return options

    @model_validator(mode="after")
    def _check_training(self) -> "Model":
        if "cpu" not in self.training:
            raise _error_at("training", "must name the parameters for 'cpu'; 'gpu' is optional")
        return self

    @model_validator(mode="after")
    def _check_gate_metric(self) -> "Model":
        allowed = GATE_METRICS[self.task]
        if self.gate.metric and self.gate.metric not in allowed:
            raise _error_at(
                "gate.metric",
                f"{self.gate.metric!r} is not measured for the task {self.task}; "
                f"allowed: {', '.join(allowed)}",
            )
        return self


class Configuration(Section):
    """The whole file."""

    storage: Prefix = Field(description="of datasets, snapshots, heat maps and reports")
    streams: dict[Name, Stream]
    models: dict[Name, Model]
    resources: Resources = Resources()
    retention: Retention = Retention()

    @model_validator(mode="after")
    def _check_models_of_streams(self) -> "Configuration":
        for name, stream in self.streams.items():
            for model in stream.models:
                if model not in self.models:
                    raise _error_at(
                        f"streams.{name}.models",
                        f"names {model!r}, which is not under models; "
                        f"allowed: {', '.join(sorted(self.models)) or 'none'}",
                    )
        return self

    @model_validator(mode="after")
    def _check_retention(self) -> "Configuration":
        for name, stream in self.streams.items():
            limits = overridden(self.retention, stream.retention)
            for kind in ("results", "manifests"):
                self._check_nights_are_kept(name, kind, getattr(limits, kind))
            for kind in ("manifests", "heatmaps"):
                own = getattr(limits, kind)
                if own is not None and limits.results is not None and own > limits.results:
                    raise _error_at(
                        self._place_of_limit(name, kind),
                        f"keeps {own} nights, longer than the {limits.results} of results "
                        f"that they belong to (stream {name!r})",
                    )
        return self

    def _check_nights_are_kept(self, name: str, kind: str, limit: int | None) -> None:
        """Check that no night is deleted in which a run still looks for images.

        They would be found again as new, scored again, and would raise their alarms again.
        """
        stream = self.streams[name]
        for key in ("lookback_nights", "rescore_nights"):
            if limit is not None and limit <= getattr(stream, key):
                raise _error_at(
                    self._place_of_limit(name, kind),
                    f"keeps {limit} nights and must exceed streams.{name}.{key}, which is "
                    f"{getattr(stream, key)}: a run looks at these nights again",
                )

    def _place_of_limit(self, stream: str, kind: str) -> str:
        """The keys that lead to the limit that is in force for a stream."""
        is_own = kind in self.streams[stream].retention.model_fields_set
        return f"streams.{stream}.retention.{kind}" if is_own else f"retention.{kind}"

    def stream(self, name: str) -> Stream:
        """Return the stream of a name.

        Raises:
            ConfigurationError: There is none; the message has the names of the streams.
        """
        return _get(self.streams, "stream", name)

    def model(self, name: str) -> Model:
        """Return the model of a name.

        Raises:
            ConfigurationError: There is none; the message has the names of the models.
        """
        return _get(self.models, "model", name)


def _get(items: dict[str, SectionT], kind: str, name: str) -> SectionT:
    if name not in items:
        raise ConfigurationError(
            f"There is no {kind} {name!r} in the configuration.",
            f"Known: {', '.join(sorted(items)) or 'none'}.",
        )
    return items[name]
