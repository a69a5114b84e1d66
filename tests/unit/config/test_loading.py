"""nightscore.yaml: what is accepted, and how a mistake is explained."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ml.config.loading import load
from ml.config.schema import Gate, Limits, Model, Stream, Threshold, Training
from ml.errors import ConfigurationError

VALID = """\
storage: s3://bucket
streams:
  line:
    prefix: s3://bucket/streams/line
    schedule: "0 2 * * *"
    models: [detector]
models:
  detector:
    task: anomaly
    dataset: line
    architecture: anomaly_segmenter
    input_size: [32, 56]
    training:
      cpu: {epochs: 1, batch_size: 8, learning_rate: 0.1}
"""


def _load(tmp_path: Path, text: str):
    path = tmp_path / "nightscore.yaml"
    path.write_text(text)
    return load(path)


def test_a_valid_file_gets_defaults(tmp_path):
    config = _load(tmp_path, VALID)
    assert config.stream("line").model_dump(exclude={"prefix", "schedule", "models"}) == {
        "key_pattern": None,
        "lookback_nights": 3, "shard_size": 50_000, "shards_per_task": None,
        "max_rejected_share": 0.5, "rescore_nights": 0,
        "limits": {"max_pixels": 64_000_000, "max_bytes": 64 * 2**20},
        "resources": {"score": None, "other": None},
        "retention": {"results": None, "manifests": None, "heatmaps": None, "reports": None},
    }  # fmt: skip
    detector = config.model("detector")
    assert detector.input_size == (32, 56)
    assert (detector.schedule, detector.seed, detector.options) == (None, 0, {})
    assert (detector.holdout_share, detector.holdout_by) == (0.1, "image")
    assert (detector.training["cpu"].weight_decay, detector.training["cpu"].processes) == (0, 1)
    assert detector.gate.model_dump() == {
        "metric": "", "minimum": 0, "minimum_recall": 0, "max_drop": 0.01, "confidence": 0.95,
    }  # fmt: skip
    assert detector.threshold.model_dump() == {
        "policy": "midpoint", "target_fpr": 0.01, "normal_quantile": 0.99, "anomalous_quantile": 0.05,
        "miss_cost": 10, "false_alarm_cost": 1, "anomaly_share": 0.01, "review_share": 0.01,
    }  # fmt: skip


REQUIRED = {
    Stream: {"prefix": "s3://bucket", "models": ["detector"]},
    Training: {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
    Model: {
        "task": "anomaly", "dataset": "line", "architecture": "anomaly_segmenter",
        "input_size": [32, 56], "training": {"cpu": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "keys", "allowed", "refused"),
    [
        (Stream, ["lookback_nights", "rescore_nights"], [0, 366], [-1, 367]),
        (Stream, ["shard_size"], [1, 1_000_000], [0, 1_000_001]),
        (Stream, ["shards_per_task"], [None, 1, 500], [0, 501]),
        (Stream, ["max_rejected_share"], [0, 1], [-0.001, 1.001]),
        (Limits, ["max_pixels", "max_bytes"], [1], [0]),
        (Training, ["epochs", "batch_size"], [1], [0]),
        (Training, ["learning_rate"], [1e-9], [0]),
        (Training, ["weight_decay"], [0], [-1e-9]),
        (Training, ["processes"], [1, 64], [0, 65]),
        (Gate, ["minimum_recall"], [0, 1], [-0.001, 1.001]),
        (Gate, ["max_drop"], [0], [-1e-9]),
        (Gate, ["confidence"], [0.501, 0.999], [0.5, 1]),
        (Threshold, ["target_fpr", "normal_quantile", "anomalous_quantile", "anomaly_share", "review_share"],
         [0.001, 0.999], [0, 1]),
        (Threshold, ["miss_cost", "false_alarm_cost"], [1e-9], [0]),
        (Model, ["holdout_share"], [0.001, 0.499], [0, 0.5]),
        (Model, ["input_size"], [(8, 8)], [(7, 8), (8, 7)]),
    ],
)  # fmt: skip
def test_values_are_allowed_up_to_their_limits(part, keys, allowed, refused):
    for key in keys:
        for value in allowed:
            assert getattr(part(**REQUIRED.get(part, {}) | {key: value}), key) == value
        for value in refused:
            with pytest.raises(ValidationError, match=key):
                part(**REQUIRED.get(part, {}) | {key: value})


def test_the_repository_s_own_file_is_valid():
    config = load(Path(__file__).parents[3] / "nightscore.yaml")
    assert set(config.streams) == {"cifar10", "spill"}
    assert set(config.models) == {"cifar10-classifier", "spill-anomaly"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    models: [detector]", "    models: [detector]\n    shards: 3",
         ("yaml:7: streams.line.shards: unknown key; allowed:", "shard_size")),
        ("models: [detector]", "models: [missing]", ("yaml:6: streams.line.models: names 'missing'", "allowed: detector")),
        ('"0 2 * * *"', '"0 2 * * * 30"', ("yaml:5: streams.line.schedule:", "five fields")),
        ("    dataset: line", "    dataset: line\n    gate: {minimun: 0.5}",
         ("yaml:11: models.detector.gate.minimun: unknown key;", "allowed: confidence, max_drop, metric, minimum, minimum_recall")),
        ("storage:", "store: s3://bucket\nstorage:", ("yaml:1: store: unknown key; allowed: models, resources, retention, storage, streams",)),
        ("anomaly_segmenter", "vision_transformer",
         ("yaml:11: models.detector.architecture:", "allowed: anomaly_segmenter, attention_autoencoder, residual_network")),
        ("    dataset: line", "    dataset: line\n    gate: {minimum: 0.5, metric: accuracy}",
         ("yaml:11: models.detector.gate.metric: 'accuracy' is not measured", "allowed: auroc")),
        ('"0 2 * * *"', "nightly", ("yaml:5: streams.line.schedule:", "cron expression")),
        ("s3://bucket/streams/line", "/data/line", ("yaml:4: streams.line.prefix:", "s3://BUCKET/PREFIX")),
        ("task: anomaly", "task: detection", ("yaml:9: models.detector.task:", "'classification' or 'anomaly'")),
        ("cpu: {", "tpu: {", ("yaml:14: models.detector.training", "'cpu' or 'gpu'")),
        ("cpu: {", "gpu: {", ("yaml:13: models.detector.training: must name", "'cpu'")),
        ("epochs: 1", "epochs: 0", ("yaml:14: models.detector.training.cpu.epochs", "greater than 0")),
        ("    dataset: line", "    dataset: line\n    options: {depth: 3}",
         ("yaml:11: models.detector.options.depth: unknown key; allowed: flips, synthetic, width",)),
        ("    dataset: line", "    dataset: line\n    options: {width: wide, flips: 1}",
         ("yaml:11: models.detector.options.width: Input should be a valid integer (it is 'wide')",
          "yaml:11: models.detector.options.flips: Input should be a valid boolean (it is 1)")),
        ("    dataset: line", "    dataset: line\n    options:\n      synthetic: [dust]\n      width: 0",
         ("yaml:12: models.detector.options.synthetic.0: Input should be 'empty', 'pasted', 'spill' or 'torn'",
          "yaml:13: models.detector.options.width: Input should be greater than or equal to 1 (it is 0)")),
        ("    dataset: line", "    dataset: line\n    options: {synthetic: []}",
         ("yaml:11: models.detector.options.synthetic: List should have at least 1 item",)),
        ("    dataset: line\n", "", ("models.detector.dataset: is required",)),
        ("storage:", "storage: s3://bucket\nstorage:", ("not valid YAML", "duplicate key")),
        ("storage: s3://bucket", "storage: [", ("not valid YAML",)),
        ("storage:", "resources: {train: {cpu: 4 cores}}\nstorage:",
         ("yaml:1: resources.train.cpu: is not of the form that Kubernetes allows, such as 4, 0.5 or 500m (it is '4 cores')",)),
        ("storage:", "resources: {tune: {cpu: 4}}\nstorage:",
         ("yaml:1: resources.tune: unknown key; allowed: evaluate, other, retrain, score, train",)),
        ("storage:", "resources: {train: {gpus: 1}}\nstorage:",
         ("yaml:1: resources.train.gpus: unknown key; allowed: cpu, executor, gpu, gpu_resource, image, memory",)),
        ("    dataset: line", "    dataset: line\n    resources: {score: {gpu: 1}}",
         ("yaml:11: models.detector.resources.score: unknown key; allowed: evaluate, retrain, train",)),
        ("    models: [detector]", "    models: [detector]\n    resources:\n      score:\n        tolerations: [{taint: gpu}]",
         ("yaml:9: streams.line.resources.score.tolerations.0.taint: unknown key; allowed: effect, key, operator, value",)),
    ],
)  # fmt: skip
def test_a_mistake_names_its_line_and_what_is_allowed(tmp_path, old, new, expected):
    assert old in VALID
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, VALID.replace(old, new, 1))
    for part in expected:
        assert part in caught.value.message


def test_an_empty_file_and_a_missing_file_are_explained(tmp_path):
    with pytest.raises(ConfigurationError, match="holds no settings"):
        _load(tmp_path, "")
    with pytest.raises(ConfigurationError, match="does not exist"):
        load(tmp_path / "none.yaml")


def test_all_mistakes_are_reported_at_once(tmp_path):
    broken = VALID.replace("task: anomaly", "task: x").replace('"0 2 * * *"', "y")
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, broken)
    assert len(caught.value.message.splitlines()) == 2


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigurationError, match="Known: line"):
        _load(tmp_path, VALID).stream("lime")


def test_brackets_in_each_other_are_counted_whatever_was_closed_before(tmp_path):
    closed = "[" + "[]," * 60
    with pytest.raises(ConfigurationError, match="more than 50 brackets in each other"):
        _load(tmp_path, closed + "[" * 50)
    with pytest.raises(ConfigurationError, match="holds no settings"):
        _load(tmp_path, closed + "[" * 49 + "]" * 50)
