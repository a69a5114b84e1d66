"""nightscore.yaml: what is accepted, and how a mistake is explained."""

from pathlib import Path

import pytest

from ml.config import load
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
    assert config.stream("line").lookback_nights == 3
    assert config.model("detector").threshold.policy == "midpoint"
    assert config.model("detector").input_size == (32, 56)


def test_the_repository_s_own_file_is_valid():
    config = load(Path(__file__).parents[2] / "nightscore.yaml")
    assert set(config.streams) == {"cifar10", "spill"}
    assert set(config.models) == {"cifar10-classifier", "spill-anomaly"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    models: [detector]", "    models: [detector]\n    shards: 3",
         ("yaml:7: streams.line.shards: unknown key; allowed:", "shard_size")),
        ("models: [detector]", "models: [missing]", ("yaml:6: streams.line.models: names 'missing'", "allowed: detector")),
        ('"0 2 * * *"', '"0 2 * * * 30"', ("yaml:5: streams.line.schedule:", "five fields")),
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
        ("    dataset: line\n", "", ("models.detector.dataset: is required",)),
        ("storage:", "storage: s3://bucket\nstorage:", ("not valid YAML", "duplicate key")),
        ("storage: s3://bucket", "storage: [", ("not valid YAML",)),
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
