"""`nightscore.yaml`: the streams and the models, checked once when it is read.

The file holds no secrets and no addresses of services; those come from the environment
(`ml.settings`). DAG files read it when they are parsed, so this module imports nothing heavy.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from croniter import croniter
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ml.errors import ConfigurationError

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_MOST_PROBLEMS, _MOST_LETTERS, _MOST_OF_A_VALUE = 20, 300, 100
_LONGEST_CRON = 200
# Of an image, where a stream sets no limit of its own, and of labelled images.
MAX_PIXELS = 64_000_000
S3_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*$"


class Strict(BaseModel):
    """A part of the file: unknown keys are errors, values do not change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# What a gate may compare: the held-out metrics of `ml.evaluation.metrics` for which more is
# better. The first is the default.
GATE_METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "anomaly": ("auroc", "average_precision", "tpr", "tnr"),
}


def _cron(expression: str) -> str:
    short = len(expression) <= _LONGEST_CRON
    if not short or len(expression.split()) != 5 or not croniter.is_valid(expression):
        raise ValueError(
            f"{shown(expression)} is not a cron expression of five fields, such as '0 2 * * *'"
        )
    return expression


def architectures() -> list[str]:
    """The names of the architectures: the files of `ml/models/`."""
    folder = Path(__file__).parents[1] / "models"
    return sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def _architecture(name: str) -> str:
    if name not in architectures():
        raise ValueError(
            f"there is no architecture {name!r}; allowed: {', '.join(architectures())}"
        )
    return name


Name = Annotated[str, Field(pattern=NAME)]
Prefix = Annotated[str, Field(pattern=S3_URI)]
Cron = Annotated[str, AfterValidator(_cron)]
Share = Annotated[float, Field(ge=0, le=1)]


def _at(path: str, message: str) -> PydanticCustomError:
    """A fault between several keys, reported at the one of them that `path` leads to."""
    return PydanticCustomError("fault", "{message}", {"message": message, "path": path})


class Limits(Strict):
    """What an image may measure before it is rejected instead of decoded."""

    max_pixels: int = Field(MAX_PIXELS, gt=0, description="width x height, pixels")
    max_bytes: int = Field(64 * 1024 * 1024, gt=0, description="size of the object, bytes")


class Stream(Strict):
    """A source of images under one S3 prefix, and how its nights are scored."""

    prefix: Prefix
    schedule: Cron | None = None
    models: Annotated[list[Name], Field(min_length=1)]
    lookback_nights: int = Field(3, ge=0, le=366)
    shard_size: int = Field(50_000, ge=1, le=1_000_000)
    max_rejected_share: Share = 0.5
    rescore_nights: int = Field(0, ge=0, le=366)
    limits: Limits = Limits()


class Training(Strict):
    """Training parameters for one class of device."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    processes: int = Field(1, ge=1, le=64, description="of one machine, a GPU each")


class Gate(Strict):
    """What a challenger must reach on the held-out images to become champion."""

    metric: str = ""
    minimum: float = Field(0.0, description="floor of the metric")
    minimum_recall: Share = Field(0.0, description="floor of each class's recall")
    max_drop: float = Field(0.01, ge=0, description="how far below the champion it may be")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="with which it must be no worse")


class Threshold(Strict):
    """How an anomaly model's threshold is chosen from its held-out images.

    `midpoint`: halfway between a high quantile of the normal and a low quantile of the anomalous
    scores; needs calibration anomalies. `target_fpr`: the quantile of the normal scores at a
    wished false-alarm rate. `cost`: where misses and false alarms are expected to cost least;
    needs calibration anomalies.
    """

    policy: Literal["midpoint", "target_fpr", "cost"] = "midpoint"
    target_fpr: float = Field(0.01, gt=0, lt=1)
    normal_quantile: float = Field(0.99, gt=0, lt=1)
    anomalous_quantile: float = Field(0.05, gt=0, lt=1)
    miss_cost: float = Field(10.0, gt=0, description="of an anomaly that is not flagged")
    false_alarm_cost: float = Field(1.0, gt=0, description="of a normal image that is flagged")
    anomaly_share: float = Field(0.01, gt=0, lt=1, description="anomalies among a night's images")
    review_share: float = Field(
        0.01, gt=0, lt=1, description="held-out normal images that would be marked for review"
    )


class Model(Strict):
    """A registered model: what it learns from, how, and when a new version may take over."""

    task: Literal["classification", "anomaly"]
    dataset: Name
    architecture: Annotated[str, AfterValidator(_architecture)]
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

    @model_validator(mode="after")
    def _devices_are_named(self) -> "Model":
        if "cpu" not in self.training:
            raise _at("training", "must name the parameters for 'cpu'; 'gpu' is optional")
        return self

    @model_validator(mode="after")
    def _the_gate_compares_what_is_measured(self) -> "Model":
        allowed = GATE_METRICS[self.task]
        if self.gate.metric and self.gate.metric not in allowed:
            raise _at(
                "gate.metric",
                f"{self.gate.metric!r} is not measured for the task {self.task}; "
                f"allowed: {', '.join(allowed)}",
            )
        return self


class Configuration(Strict):
    """The whole file."""

    storage: Prefix = Field(description="where datasets, snapshots, heat maps and reports lie")
    streams: dict[Name, Stream]
    models: dict[Name, Model]

    @model_validator(mode="after")
    def _models_of_streams_exist(self) -> "Configuration":
        for name, stream in self.streams.items():
            for model in stream.models:
                if model not in self.models:
                    raise _at(
                        f"streams.{name}.models",
                        f"names {model!r}, which is not under models; "
                        f"allowed: {', '.join(sorted(self.models)) or 'none'}",
                    )
        return self

    def stream(self, name: str) -> Stream:
        """The stream of that name; raises ConfigurationError with the names there are."""
        return _named(self.streams, "stream", name)

    def model(self, name: str) -> Model:
        """The model of that name; raises ConfigurationError with the names there are."""
        return _named(self.models, "model", name)


def _named(items: dict[str, Any], kind: str, name: str) -> Any:
    if name not in items:
        raise ConfigurationError(
            f"There is no {kind} {name!r} in the configuration.",
            f"Known: {', '.join(sorted(items)) or 'none'}.",
        )
    return items[name]


def shown(value: Any) -> str:
    """A value of the file for a message."""
    shown = repr(value) if not isinstance(value, dict | list) else type(value).__name__
    return shown if len(shown) <= _MOST_OF_A_VALUE else f"{shown[:_MOST_OF_A_VALUE]}..."
