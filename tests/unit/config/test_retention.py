"""The limits of nightscore.yaml: what overrides what, and what is refused."""

from datetime import date

import pytest

from ml.config.loading import load
from ml.errors import ConfigurationError
from ml.retention.policy import policy_of

TODAY = date(2026, 11, 27)
STREAMS = """\
storage: s3://bucket
streams:
  line:
    prefix: s3://bucket/streams/line
    models: [detector]
    rescore_nights: 7
    {line}
  other:
    prefix: s3://bucket/streams/other
    models: [detector]
models:
  detector:
    task: anomaly
    dataset: line
    architecture: anomaly_segmenter
    input_size: [32, 56]
    training:
      cpu: {{epochs: 1, batch_size: 8, learning_rate: 0.1}}
    {model}
{top}
"""


def _load(tmp_path, top="", line="", model=""):
    path = tmp_path / "nightscore.yaml"
    path.write_text(STREAMS.format(top=top, line=line, model=model))
    return load(path)


def test_without_limits_everything_is_kept(tmp_path):
    policy = policy_of(_load(tmp_path))
    assert policy.is_empty()
    for kind in ("results", "manifests", "heatmaps", "reports"):
        assert policy.first_night(kind, "line", TODAY) is None
    assert policy.first_snapshot_day(TODAY) is None
    assert policy.first_version_day("detector", TODAY) is None


def test_a_stream_or_model_overrides_single_limits_and_null_keeps_for_ever(tmp_path):
    policy = policy_of(
        _load(
            tmp_path,
            top="retention: {results: 100, reports: 400, snapshots: 30, versions: 60}",
            line="retention: {results: 10, reports: null}",
            model="retention: {versions: null}",
        )
    )
    assert policy.first_night("results", "line", TODAY) == date(2026, 11, 17)
    assert policy.first_night("results", "other", TODAY) == date(2026, 8, 19)
    assert policy.first_night("results", "no longer configured", TODAY) == date(2026, 8, 19)
    assert policy.first_night("reports", "line", TODAY) is None
    assert policy.first_night("reports", "other", TODAY) == date(2025, 10, 23)
    assert policy.first_snapshot_day(TODAY) == date(2026, 10, 28)
    assert policy.first_version_day("detector", TODAY) is None
    assert policy.first_version_day("another", TODAY) == date(2026, 9, 28)


def test_manifests_and_heat_maps_go_with_their_results_at_the_latest(tmp_path):
    policy = policy_of(_load(tmp_path, top="retention: {results: 20, heatmaps: 10}"))
    assert policy.first_night("manifests", "line", TODAY) == date(2026, 11, 7)
    assert policy.first_night("heatmaps", "line", TODAY) == date(2026, 11, 17)


@pytest.mark.parametrize(
    ("sections", "line", "message"),
    [
        ({"top": "retention: {results: 0}"}, 20, "greater than or equal to 1"),
        (
            {"top": "retention: {results: 7}"},
            20,
            "retention.results: keeps 7 nights and must exceed streams.line.rescore_nights, which is 7",
        ),
        (
            {"line": "retention: {manifests: 3}"},
            7,
            "streams.line.retention.manifests: keeps 3 nights and must exceed "
            "streams.line.lookback_nights, which is 3",
        ),
        (
            {"top": "retention: {results: 20}", "line": "retention: {heatmaps: 30}"},
            7,
            "streams.line.retention.heatmaps: keeps 30 nights, longer than the 20 of results",
        ),
        (
            {"top": "retention: {nights: 7}"},
            20,
            "allowed: heatmaps, manifests, reports, results, schedule, snapshots, versions",
        ),
        (
            {"line": "retention: {snapshots: 7}"},
            7,
            "allowed: heatmaps, manifests, reports, results",
        ),
        ({"model": "retention: {results: 7}"}, 19, "allowed: versions"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(tmp_path, sections, line, message):
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, **sections)
    assert f":{line}: " in caught.value.message
    assert message in caught.value.message
