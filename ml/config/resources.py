"""The section `resources` of `nightscore.yaml`: where Airflow runs a kind of task, and with what.

A queue is for Celery, a pod's settings are for Kubernetes; LocalExecutor ignores both. The units
are those of Kubernetes (https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/).
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ml.config.section import Section

TaskKind = Literal["score", "train", "evaluate", "retrain", "other"]
# Kinds that load a program or train one, and take turns by their pool.
COMPUTING: tuple[TaskKind, ...] = ("score", "train", "evaluate")

_CPU = r"\d+(\.\d{1,3})?|\d+m"
_MEMORY = r"\d+(\.\d+)?([KMGTP]i|[kMGTP])?"
# A name, with or without the domain of whoever defines it: `example.com/gpu`.
_LABEL = r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_EXTENDED = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"


def _matching(pattern: str, example: str) -> AfterValidator:
    """Return a check that a text has a form, of which the message gives an example."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"is not of the form that Kubernetes allows, such as {example}")
        return text

    return AfterValidator(check)


def _number_as_text(value: object) -> object:
    """Let YAML's 4 and 0.5 stand for "4" and "0.5"."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


Cpu = Annotated[str, BeforeValidator(_number_as_text), _matching(_CPU, "4, 0.5 or 500m")]
Memory = Annotated[str, BeforeValidator(_number_as_text), _matching(_MEMORY, "8Gi or 512Mi")]
Label = Annotated[str, _matching(_LABEL, "nvidia.com/gpu.present")]
Text = Annotated[str, Field(min_length=1, max_length=250)]


class Toleration(Section):
    """A taint of nodes on which the pod may run nevertheless, in Kubernetes' own words."""

    key: Label | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _check_operator(self) -> "Toleration":
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("a toleration with the operator Exists has no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("a toleration without a key needs the operator Exists")
        return self


class TaskResources(Section):
    """Where tasks of a kind run, and with what. What is not set comes from the pod template."""

    queue: Text | None = Field(None, description="of Celery's workers")
    pool: Text | None = Field(None, description="of Airflow, whose slots limit what runs at once")
    executor: Text | None = Field(None, description="one of Airflow's, where it has several")
    image: Text | None = Field(None, description="of the pod")
    cpu: Cpu | None = Field(None, description="cores, requested and not exceeded")
    memory: Memory | None = Field(None, description="bytes, requested and not exceeded")
    gpu: int = Field(0, ge=0, le=64, description="GPUs of the pod")
    gpu_resource: Annotated[str, _matching(_EXTENDED, "nvidia.com/gpu")] = "nvidia.com/gpu"
    node_selector: dict[Label, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)

    def overridden_by(self, other: "TaskResources | None") -> "TaskResources":
        """Return these resources with what is set in `other`, key by key."""
        if other is None:
            return self
        changes = {name: getattr(other, name) for name in other.model_fields_set}
        return self.model_copy(update=changes)


class StreamResources(Section):
    """What a stream's tasks have in place of the resources of their kind."""

    score: TaskResources | None = None
    other: TaskResources | None = None


class ModelResources(Section):
    """What a model's tasks have in place of the resources of their kind."""

    train: TaskResources | None = None
    evaluate: TaskResources | None = None
    retrain: TaskResources | None = None


class Resources(StreamResources, ModelResources):
    """The resources of each kind of task.

    - `score`, `train`, `evaluate`: the tasks of these names.
    - `retrain`: the other steps of a retrain DAG, which use MLflow's library.
    - `other`: all other tasks, which use Postgres and S3 only.
    """

    def of(self, kind: TaskKind, override: StreamResources | ModelResources) -> TaskResources:
        """Return the resources of a kind of task: those of the stream or model come first."""
        is_computing = kind in COMPUTING
        return (
            TaskResources(
                queue="gpu" if is_computing else "default",
                pool="gpu" if is_computing else "default_pool",
            )
            .overridden_by(getattr(self, kind))
            .overridden_by(getattr(override, kind, None))
        )
