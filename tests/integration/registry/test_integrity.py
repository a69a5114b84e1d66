"""Models that were changed, damaged or lost between training and scoring, on the real services.

They are refused by name before an image is fetched, and no other version scores instead.
"""

import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import date, timedelta
from pathlib import Path

import pytest

from ml.config.loading import configuration
from ml.errors import DataError, RunFailedError, ServiceError
from ml.program.info import ProgramInfo
from ml.registry import programs, promotion, registration, tracking, versions
from ml.registry.client import mlflow_client
from ml.scoring import steps
from ml.storage.download import download
from ml.storage.object_store import object_store
from tests.support import registered, synthetic_images
from tests.support.retries import no_retries

NIGHTS = iter(date(2031, 3, 1) + timedelta(days=10 * n) for n in range(1000))
IMAGES = 6


@pytest.fixture
def night(trained) -> str:
    """A night with images that no other test uses."""
    chosen = next(NIGHTS)
    prefix = configuration().stream("line").prefix
    for n in range(IMAGES):
        content = synthetic_images.shade("dark" if n % 2 else "light", 310_000 + n)
        object_store().put(f"{prefix}/dt={chosen}/{n}.png", content)
    return chosen.isoformat()


@pytest.fixture(scope="module")
def champion(trained) -> Iterator[int]:
    """A new champion of the classifier; the old one returns afterwards."""
    before = versions.version_of_alias("shades", "champion")
    version = registered.other_than_champion("shades")
    promotion.promote("shades", version, reason="test", by="test")
    yield version
    promotion.promote("shades", before, reason="test", by="test")


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The URIs of the images that are fetched."""
    uris: list[str] = []

    def download_and_note(store, requests):
        for image in download(store, requests):
            uris.append(image.key.uri)
            yield image

    monkeypatch.setattr("ml.scoring.shard.download", download_and_note)
    return uris


@contextmanager
def _described_otherwise(model: str, version: int, **other) -> Iterator[None]:
    """Change what MLflow's run says of the program; the old description returns afterwards."""
    run_id = registered.run_of(model, version)
    stored = tracking.read_json(run_id, "program.json")
    tracking.log_json(run_id, "program.json", stored | other)
    try:
        yield
    finally:
        tracking.log_json(run_id, "program.json", stored)


def _fetch(model: str, version: int) -> tuple[Path, ProgramInfo]:
    return programs.fetch(registration.load_registration(model, version))


# Changes of a detector's description, each of which would change a plant's alarms.
CHANGES = [
    ("threshold", 0.987654),
    ("novelty_threshold", 0.987654),
    ("classes", ["normal", "spilled"]),
    ("input_size", [16, 8]),
    ("task", "classification"),
    ("synthetic", True),
    ("sha256", "0" * 64),
]


def test_everything_that_is_known_of_a_program_is_recorded_at_its_registration(trained):
    (row,) = registered.query(
        "SELECT * FROM nightscore.model_version WHERE model = 'moulds' AND version = 1"
    )
    assert set(row["program"]) == {field.name for field in fields(ProgramInfo)}
    _, info = _fetch("moulds", 1)
    assert row["program"] == registration.program_info_json(info)
    assert row["program"]["threshold"] == row["threshold"]


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_what_mlflow_says_of_a_program_must_be_what_was_recorded(trained, name, value):
    with registered.uncached("moulds", 1):
        with (
            _described_otherwise("moulds", 1, **{name: value}),
            pytest.raises(DataError) as caught,
        ):
            _fetch("moulds", 1)
        recorded = registration.load_registration("moulds", 1).fields[name]
        for part in ("moulds/1", f"{name} {value!r}", repr(recorded), "MLflow's run"):
            assert part in caught.value.message
        # Nothing of it was cached, so the right description is found as soon as it is back.
        assert list(registered.folder("moulds", 1).iterdir()) == []
        _fetch("moulds", 1)


@pytest.mark.parametrize(("name", "value"), CHANGES[:-1])
def test_what_the_copy_on_this_machine_says_must_be_what_was_recorded(trained, name, value):
    with registered.uncached("moulds", 1):
        _fetch("moulds", 1)
        path = registered.folder("moulds", 1) / "program.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        with pytest.raises(DataError) as caught:
            _fetch("moulds", 1)
        assert f"{name} {value!r} in {path}" in caught.value.message


def test_a_copy_of_another_program_is_replaced_and_a_damaged_description_named(trained):
    with registered.uncached("moulds", 1):
        _, info = _fetch("moulds", 1)
        path = registered.folder("moulds", 1) / "program.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
        assert _fetch("moulds", 1)[1] == info
        for damaged in ("{", "[]", "{}"):
            path.write_text(damaged)
            with pytest.raises(DataError, match=r"program\.json is damaged"):
                _fetch("moulds", 1)


def test_a_version_from_before_there_was_such_a_record_is_held_against_the_columns(trained):
    with registered.changed_row("moulds", 1, program=None), registered.uncached("moulds", 1):
        for name, value in CHANGES:
            # No column has the input size; MLflow's signature has it.
            reason = "signature" if name == "input_size" else name
            with (
                _described_otherwise("moulds", 1, **{name: value}),
                pytest.raises(DataError, match=reason),
            ):
                _fetch("moulds", 1)
        _fetch("moulds", 1)


@pytest.mark.parametrize(
    ("column", "value"), [("threshold", 0.987654), ("classes", ["a", "b"]), ("synthetic", True)]
)
def test_a_row_that_contradicts_itself_is_refused(trained, column, value):
    with (
        registered.changed_row("moulds", 1, **{column: value}),
        pytest.raises(DataError, match=f"contradicts itself about the {column} of moulds/1"),
    ):
        _fetch("moulds", 1)


def test_mlflows_tag_must_have_the_recorded_hash(trained):
    client = mlflow_client()
    with registered.uncached("moulds", 1):
        tag = client.get_model_version("moulds", "1").tags["nightscore.sha256"]
        try:
            client.set_model_version_tag("moulds", "1", "nightscore.sha256", "0" * 64)
            with pytest.raises(DataError, match=r"MLflow's tag nightscore\.sha256"):
                _fetch("moulds", 1)
        finally:
            client.set_model_version_tag("moulds", "1", "nightscore.sha256", tag)
        _fetch("moulds", 1)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b"16,16]", b"16,32]", "signature of moulds"),
        (b'"novelties"', b'"novelty"', "signature of moulds"),
        (b"synthetic: false", b"synthetic: true", "metadata of moulds.* has synthetic True"),
        (b"task: anomaly", b"task: other", "metadata of moulds.* has task 'other'"),
        (b"- normal", b"- usual", "metadata of moulds.* has classes"),
    ],
)
def test_a_signature_or_metadata_that_contradicts_the_record_is_refused(
    trained, before, after, reason
):
    def changed(content: bytes) -> bytes:
        if before not in content:  # YAML folds the JSON of a signature
            content = content.replace(b"16, 16]", b"16,16]")
        assert before in content
        return content.replace(before, after)

    version = registered.query("SELECT version FROM nightscore.model_alias WHERE model = 'moulds' AND alias = 'champion'")[0]["version"]  # fmt: skip
    tags = mlflow_client().get_model_version("moulds", str(version)).tags
    with registered.uncached("moulds", version):
        with registered.changed_object(registered.artifact("moulds", version, "MLmodel"), changed):
            with pytest.raises(DataError, match=reason):
                _fetch("moulds", version)
            with pytest.raises(DataError, match=reason):
                versions.register(
                    registered.run_of("moulds", version), "moulds", {"x": "y"}, "other"
                )
        _fetch("moulds", version)
    assert mlflow_client().get_model_version("moulds", str(version)).tags == tags


def _without(content: bytes) -> None:
    return None


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _with_another_weight(content: bytes) -> bytes:
    at = content.index(b"data/weights/weight_0") + 200
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without, "cannot be fetched: MLflow failed"),
        (_truncated, "SHA-256"),
        (_with_another_weight, "SHA-256"),
    ],
)
def test_a_champion_that_cannot_be_loaded_fails_the_night_and_no_other_version_scores_it(
    champion, night, change, reason, fetched
):
    with registered.uncached("shades", champion):
        with (
            registered.changed_object(
                registered.artifact("shades", champion, "data/model.pt2"), change
            ),
            no_retries(),
            pytest.raises(RunFailedError) as caught,
        ):
            steps.score_night("line", night)
        assert f"shades/{champion}" in str(caught.value)
        assert reason in str(caught.value)
        assert fetched == []
        (run,) = registered.query(
            "SELECT status, scored, error FROM reporting.nightly_summary"
            " WHERE stream = 'line' AND night = :n",
            n=night,
        )
        assert (run["status"], run["scored"]) == ("failed", 0)
        assert f"{IMAGES} of {IMAGES} images are neither scored nor rejected" in run["error"]
        assert registered.query("SELECT FROM nightscore.prediction WHERE night = :n", n=night) == []
        # As soon as the file is right again, the next run succeeds without further action.
        assert steps.score_night("line", night)["scored"] == IMAGES
    assert len(fetched) == IMAGES
    rows = registered.query(
        "SELECT DISTINCT version FROM nightscore.prediction WHERE night = :n", n=night
    )
    assert rows == [{"version": champion}]


def test_a_version_without_a_row_scores_nothing_and_cannot_be_promoted(champion, night, fetched):
    with registered.changed_row("shades", champion):
        with pytest.raises(RunFailedError) as caught:
            steps.score_night("line", night)
        assert f"shades/{champion} is not registered in nightscore.model_version" in str(
            caught.value
        )
        assert "nightscore train shades" in str(caught.value)
        assert fetched == []
        with pytest.raises(DataError, match="is not registered"):
            promotion.promote("shades", champion, reason="test", by="test")
    assert steps.score_night("line", night)["scored"] == IMAGES


def test_a_full_disk_is_named_leaves_nothing_and_a_retry_works(champion):
    """A limit on the size of files stands for the full disk: writes fail with another errno."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with registered.uncached("shades", champion):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(ServiceError) as caught:
                _fetch("shades", champion)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert f"shades/{champion} cannot be kept in {registered.folder('shades', champion)}" in (
            caught.value.message
        )
        assert "File too large" in caught.value.message
        assert "NIGHTSCORE_HOME" in caught.value.hint
        assert list(registered.folder("shades", champion).iterdir()) == []
        path, info = _fetch("shades", champion)
        assert path.stat().st_size > 20_000
        assert info.version == champion


def test_a_folder_that_cannot_be_made_is_named(champion):
    with registered.uncached("shades", champion):
        folder = registered.folder("shades", champion)
        folder.write_text("a file is in the way")
        try:
            with pytest.raises(ServiceError, match=r"cannot be kept in .*File exists") as caught:
                _fetch("shades", champion)
        finally:
            folder.unlink()
    assert "NIGHTSCORE_HOME" in caught.value.hint


def test_what_a_killed_download_has_left_is_no_program_and_goes_away(champion):
    with registered.uncached("shades", champion):
        old, new = (
            registered.folder("shades", champion) / f"partial-{name}" for name in ("old", "new")
        )
        for partial in (old, new):
            partial.mkdir(parents=True)
            (partial / "model.pt2").write_text("half of it")
            (partial / "program.json").write_text("{}")
        hours_ago = time.time() - 7200
        for written in (*old.iterdir(), old):
            os.utime(written, (hours_ago, hours_ago))
        path, _ = _fetch("shades", champion)
        assert path == registered.folder("shades", champion) / "model.pt2"
        # Another process may be fetching into the new one.
        assert (old.exists(), new.exists()) == (False, True)
