"""`nightscore.yaml`: the streams and the models, checked once when it is read.

The file holds no secrets and no addresses of services; those come from the environment
(`ml.settings`). DAG files read it when they are parsed, so this module imports nothing heavy.
"""

import math
import os
import re
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from croniter import croniter
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML

from ml.errors import ConfigurationError

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
# Real files have a few kilobytes. YAML reads slowly, and an alias may stand for ever more of them.
MAX_BYTES = 128 * 1024
MAX_VALUES, MAX_BRACKETS, MAX_DEPTH = 20_000, 10_000, 50
_MOST_PROBLEMS, _MOST_LETTERS, _MOST_OF_A_VALUE = 20, 300, 100
_LONGEST_CRON = 200
S3_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*$"


class Strict(BaseModel):
    """A part of the file: unknown keys are errors, values do not change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# What a gate may compare: the held-out metrics of `ml.metrics` for which more is better. The first
# is the default.
GATE_METRICS = {
    "classification": ("accuracy", "macro_f1"),
    "anomaly": ("auroc", "average_precision", "tpr", "tnr"),
}


def _cron(expression: str) -> str:
    short = len(expression) <= _LONGEST_CRON
    if not short or len(expression.split()) != 5 or not croniter.is_valid(expression):
        raise ValueError(
            f"{_value(expression)} is not a cron expression of five fields, such as '0 2 * * *'"
        )
    return expression


def architectures() -> list[str]:
    """The names of the architectures: the files of `ml/models/`."""
    folder = Path(__file__).parent / "models"
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

    max_pixels: int = Field(64_000_000, gt=0, description="width x height, pixels")
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

    @property
    def lookback(self) -> timedelta:
        return timedelta(days=self.lookback_nights)


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


def load(path: Path) -> Configuration:
    """Read and check a configuration file.

    Raises
    ------
    ConfigurationError: the file is missing, is not YAML, or a value is not allowed; the message
        names file, line, path within the file and what is allowed.
    """
    try:
        document = YAML(typ="rt").load(_text(path))
    except ConfigurationError:
        raise
    except Exception as error:  # beside YAMLError, whatever an odd number, date or depth leads to
        message = _printable(" ".join(str(error).split()) or type(error).__name__)
        raise ConfigurationError(f"{path} is not valid YAML: {message}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} holds no settings: expected storage, streams and models.")
    values = _plain(path, document)
    try:
        return Configuration.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        problems = [_explain(path, document, problem) for problem in found[:_MOST_PROBLEMS]]
        if len(found) > _MOST_PROBLEMS:
            problems.append(f"{path}: and {len(found) - _MOST_PROBLEMS} more mistakes")
        raise ConfigurationError("\n".join(problems)) from None


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"{path} is not a file.")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist.",
            "Run from the folder that holds nightscore.yaml, or set NIGHTSCORE_CONFIG.",
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"{path} has more than {MAX_BYTES} bytes.")
    text = content.decode("utf-8-sig")
    _check_brackets(path, text)
    return text


def _check_brackets(path: Path, text: str) -> None:
    """Refuse what the parser takes seconds for: each level of brackets, each of their commas."""
    if sum(text.count(mark) for mark in "[{,") > MAX_BRACKETS:
        raise ConfigurationError(f"{path} has more than {MAX_BRACKETS} brackets and commas.")
    depth = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ConfigurationError(f"{path} has more than {MAX_DEPTH} brackets in each other.")


def _plain(path: Path, document: Any) -> Any:
    """The document without ruamel's position-keeping types; raises ConfigurationError for what no
    setting can be."""
    left = MAX_VALUES

    def copied(node: Any, *where: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            hint = "An alias counts as all that it stands for."
            raise ConfigurationError(f"{path} has more than {MAX_VALUES} values.", hint)
        if isinstance(node, dict):
            return {key: copied(value, *where, key) for key, value in node.items()}
        if isinstance(node, list):
            return [copied(value, *where, number) for number, value in enumerate(node)]
        if fault := _fault(node):
            raise ConfigurationError(_at_line(path, document, list(where), fault))
        return node

    try:
        return copied(document)
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deep.") from None


def _fault(value: Any) -> str:
    """What is wrong with a value, wherever it stands; empty when nothing is."""
    if value is not None and not isinstance(value, str | int | float):
        return f"is of type {type(value).__name__}; only text, numbers, lists and mappings may be"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"is a number of {value.bit_length()} bits; the limit is 64"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {float(value)}, which is not a finite number"
    return ""


def _printable(text: str) -> str:
    """A piece of the file for a message: one line, of bounded length."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:_MOST_LETTERS])
    return shown if len(text) <= _MOST_LETTERS else f"{shown}..."


def _value(value: Any) -> str:
    """A value of the file for a message."""
    shown = repr(value) if not isinstance(value, dict | list) else type(value).__name__
    return shown if len(shown) <= _MOST_OF_A_VALUE else f"{shown[:_MOST_OF_A_VALUE]}..."


def _explain(path: Path, document: Any, problem: Any) -> str:
    location = [part for part in problem["loc"] if part != "[key]"]
    if problem["type"] == "fault":
        location += problem["ctx"]["path"].split(".")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key; allowed: {', '.join(_allowed_keys(location))}"
    elif problem["type"] == "missing":
        message = "is required"
    elif problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == S3_URI:
        value = _value(problem["input"])
        message = f"{value} is not of the form s3://BUCKET/PREFIX without a final slash"
    elif problem["type"] == "string_pattern_mismatch":
        message = (
            f"{_value(problem['input'])} may hold lower-case letters, digits, '-' and '_' only"
        )
    elif problem["type"] != "fault":
        message = f"{message} (it is {_value(problem['input'])})" if location else message
    return _at_line(path, document, location, message)


def _at_line(path: Path, document: Any, location: list[Any], message: str) -> str:
    where = _printable(".".join(str(part) for part in location))
    line = _line_of(document, location)
    return f"{path}:{line}: {where + ': ' if where else ''}{_printable(message)}"


def _line_of(document: Any, location: list[Any]) -> int:
    """The line, counted from 1, of the innermost part of `location` that the file has."""
    line = 1
    node: Any = document
    for part in location:
        try:
            position = node.lc.item(part) if isinstance(part, int) else node.lc.key(part)
            line, node = position[0] + 1, node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _allowed_keys(location: list[Any]) -> list[str]:
    """The keys that may stand beside the unknown one at the end of `location`."""
    sections: dict[str, dict[str, type[Strict]]] = {
        "streams": {"": Stream, "limits": Limits},
        "models": {"": Model, "training": Training, "gate": Gate, "threshold": Threshold},
    }
    if len(location) < 3 or location[0] not in sections:
        return sorted(Configuration.model_fields)
    section = str(location[2]) if len(location) > 3 else ""
    return sorted(sections[location[0]].get(section, Configuration).model_fields)


@lru_cache(maxsize=8)
def _cached(path: Path, modified_ns: int) -> Configuration:
    return load(path)


def path_in_use() -> Path:
    """The configuration file of this process: `NIGHTSCORE_CONFIG`, else ./nightscore.yaml."""
    return Path(os.environ.get("NIGHTSCORE_CONFIG") or "nightscore.yaml").absolute()


def configuration(path: Path | None = None) -> Configuration:
    """The configuration at `path`, else the one in use; read again when the file changes."""
    path = path or path_in_use()
    return _cached(path, path.stat().st_mtime_ns if path.exists() else 0)
