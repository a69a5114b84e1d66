"""The resources of a kind of task: defaults, the section of all, and what a stream or model sets."""

import pytest
from pydantic import ValidationError

from ml.config.resources import (
    ModelResources,
    Resources,
    StreamResources,
    TaskResources,
    Toleration,
)


def test_without_a_section_tasks_that_compute_share_a_queue_and_a_pool():
    resources = Resources()
    for kind in ("score", "train", "evaluate"):
        assert resources.of(kind, ModelResources()) == TaskResources(queue="gpu", pool="gpu")
    for kind in ("retrain", "other"):
        expected = TaskResources(queue="default", pool="default_pool")
        assert resources.of(kind, StreamResources()) == expected


def test_a_model_or_stream_sets_single_keys_in_place_of_those_of_all():
    resources = Resources.model_validate(
        {
            "train": {"gpu": 4, "memory": "64Gi", "node_selector": {"gpu": "h100"}},
            "score": {"queue": "line", "gpu": 1},
        }
    )
    model = ModelResources.model_validate({"train": {"gpu": 0, "node_selector": {}}})
    train = resources.of("train", model)
    assert (train.gpu, train.memory, train.node_selector) == (0, "64Gi", {})
    assert (train.queue, train.pool) == ("gpu", "gpu")
    assert resources.of("evaluate", model) == TaskResources(queue="gpu", pool="gpu")
    stream = StreamResources.model_validate({"score": {"pool": "line"}})
    score = resources.of("score", stream)
    assert (score.queue, score.pool, score.gpu) == ("line", "line", 1)


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("cpu", 4, "4"),
        ("cpu", 0.5, "0.5"),
        ("cpu", "500m", "500m"),
        ("memory", "8Gi", "8Gi"),
        ("memory", 1_000_000, "1000000"),
        ("gpu_resource", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.10gb"),
        ("node_selector", {"nvidia.com/gpu.product": "H100"}, {"nvidia.com/gpu.product": "H100"}),
    ],
)
def test_quantities_and_names_are_those_of_kubernetes(key, value, stored):
    assert getattr(TaskResources.model_validate({key: value}), key) == stored


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu", "four"),
        ("cpu", -1),
        ("cpu", True),
        ("memory", "8GB"),
        ("memory", "8 Gi"),
        ("gpu", -1),
        ("gpu_resource", "gpu"),
        ("queue", ""),
        ("node_selector", {"not a label": "x"}),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_when_the_file_is_read(key, value):
    with pytest.raises(ValidationError, match=key):
        TaskResources.model_validate({key: value})


@pytest.mark.parametrize(
    "toleration", [{"key": "gpu", "operator": "Exists", "value": "1"}, {"value": "1"}]
)
def test_a_toleration_that_kubernetes_would_refuse_is_refused(toleration):
    with pytest.raises(ValidationError):
        Toleration.model_validate(toleration)
