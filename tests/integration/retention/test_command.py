"""`nightscore prune`: it lists, and deletes only when told to."""

import json
import socket
from datetime import UTC, datetime, timedelta

import pytest
import typer

from ml.cli import maintenance
from ml.errors import ConfigurationError
from tests.support import kept_nights
from tests.support.retries import no_retries

STREAM = "retention-command"
CONFIGURATION = """\
storage: {bucket}
streams:
  {stream}: {{prefix: {bucket}/images, models: [detector], retention: {retention}}}
models:
  detector:
    task: anomaly
    dataset: line
    architecture: anomaly_segmenter
    input_size: [32, 56]
    training: {{cpu: {{epochs: 1, batch_size: 8, learning_rate: 0.1}}}}
"""


@pytest.fixture
def prune(bucket, tmp_path, monkeypatch, capsys):
    """Runs the command with the limits of a stream; returns what it prints as JSON."""

    def run(retention: str, **options) -> dict:
        path = tmp_path / "nightscore.yaml"
        values = {"bucket": bucket, "stream": STREAM, "retention": retention}
        path.write_text(CONFIGURATION.format(**values))
        monkeypatch.setenv("NIGHTSCORE_CONFIG", str(path))
        maintenance.prune(**{"delete": False, "stream": STREAM, "json": True} | options)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def night(store_and_database):
    old = datetime.now(UTC).date() - timedelta(days=800)
    kept_nights.add(STREAM, old)
    yield old
    kept_nights.remove(old, old)


def test_it_lists_what_has_passed_and_deletes_when_told_to(prune, night):
    listed = prune("{results: 700}")
    assert not listed["deleted"]
    assert [(c["kind"], c["night"]) for c in listed["candidates"]] == [
        ("manifests", str(night)),
        ("results", str(night)),
    ]
    assert kept_nights.left(night, night)["image"] == {(STREAM, night)}
    deleted = prune("{results: 700}", delete=True)
    assert [c["state"] for c in deleted["candidates"]] == ["deleted", "deleted"]
    assert kept_nights.partitions(night, night) == set()
    assert prune("{results: 700}", delete=True)["candidates"] == []


def test_a_person_gets_a_table_by_kind_and_stream(prune, night, capsys):
    prune("{results: 700}")
    maintenance.prune(delete=False, stream=STREAM, json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[-2:]] == [
        ["manifests", STREAM, "1"],
        ["results", STREAM, "1"],
    ]


def test_without_a_limit_there_is_nothing_to_delete(prune, night):
    with pytest.raises(ConfigurationError, match=r"no limit is set in nightscore\.yaml"):
        prune("{}")


def test_what_cannot_be_reached_is_named_and_the_rest_is_listed(prune, night, at_endpoint, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    at_endpoint(f"http://127.0.0.1:{port}")
    with no_retries(), pytest.raises(typer.Exit) as stopped:
        prune("{results: 700, heatmaps: 30}")
    assert stopped.value.exit_code == 1
    printed = json.loads(capsys.readouterr().out)
    assert [c["kind"] for c in printed["candidates"] if c["night"]] == ["manifests", "results"]
    assert [c["name"] for c in printed["candidates"] if c["error"]] == ["objects"]
