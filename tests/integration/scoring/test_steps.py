"""Nights scored with real Postgres, S3 and MLflow: no image is lost or scored twice."""

import json
import threading
from contextlib import contextmanager
from datetime import date, timedelta
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa

from ml.config.loading import configuration
from ml.database.connection import transaction
from ml.errors import DataError, RunFailedError, ServiceError
from ml.registry import programs, promotion, registration, versions
from ml.report import nightly
from ml.scoring import runs, steps
from ml.scoring.shard import score_shard
from ml.storage import clients
from ml.storage.download import download
from ml.storage.object_store import object_store
from tests.support import registered, synthetic_images

NIGHTS = iter(date(2026, 3, 1) + timedelta(days=10 * n) for n in range(1000))


@pytest.fixture
def night() -> date:
    """A night that no other test uses, with the nights it looks back on."""
    return next(NIGHTS)


def _put(stream: str, night: date, images: dict[str, bytes]) -> None:
    prefix = configuration().stream(stream).prefix
    for name, content in images.items():
        object_store().put(f"{prefix}/dt={night}/{name}", content)


def _shades(count: int, start: int = 0) -> dict[str, bytes]:
    return {
        f"{n:03}.png": synthetic_images.shade("dark" if n % 2 else "light", 10_000 + n)
        for n in range(start, start + count)
    }


def _query(sql: str, **values):
    with transaction() as session:
        return [dict(row) for row in session.execute(sa.text(sql), values).mappings()]


def _checksum(night: date) -> list[dict]:
    return _query(
        "SELECT 'p' AS kind, md5(string_agg(p::text, '' ORDER BY p::text)) AS sum, count(*) FROM nightscore.prediction p WHERE night = :n"
        " UNION ALL SELECT 'r', md5(string_agg(r::text, '' ORDER BY r::text)), count(*) FROM nightscore.rejection r WHERE night = :n",
        n=night,
    )  # fmt: skip


def test_a_night_is_scored_and_a_second_run_changes_nothing(trained, night):
    _put("line", night, _shades(25))
    first = steps.score_night("line", night.isoformat())
    assert (first["discovered"], first["scored"], first["rejected"]) == (25, 25, 0)
    before = _checksum(night)
    second = steps.score_night("line", night.isoformat())
    assert (second["discovered"], second["scored"]) == (0, 0)
    assert _checksum(night) == before
    assert before[0]["count"] == 25


def test_a_shard_whose_images_come_in_many_pages_is_scored_whole_and_once(
    trained, night, monkeypatch
):
    _put("line", night, _shades(25))
    monkeypatch.setattr("ml.scoring.shard._ROWS_PER_PAGE", 4)
    assert steps.score_night("line", night.isoformat())["scored"] == 25
    assert _checksum(night)[0]["count"] == 25


def test_the_predictions_are_right_where_it_is_easy(trained, night):
    _put("line", night, _shades(40))
    steps.score_night("line", night.isoformat())
    rows = _query(
        "SELECT image_uri, predicted_class, confidence, model, version FROM reporting.predictions WHERE stream = 'line' AND night = :n",
        n=night,
    )
    right = sum(
        (int(row["image_uri"][-7:-4]) % 2 == 1) == (row["predicted_class"] == "dark")
        for row in rows
    )
    assert len(rows) == 40
    assert right >= 36


def test_a_rejected_image_has_a_reason_and_the_run_goes_on(trained, night):
    good = _shades(12)
    bad = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": synthetic_images.shade("dark", 1)[:100],
        "wide.png": synthetic_images.png(np.zeros((200, 100, 3), np.uint8)),
        "heavy.png": synthetic_images.shade("dark", 2) + b"\0" * 100_000,
    }
    _put("both", night, good | bad)
    counts = steps.score_night("both", night.isoformat())
    assert (counts["discovered"], counts["scored"], counts["rejected"]) == (17, 12, 5)
    rows = _query(
        "SELECT image_uri, model, reason FROM reporting.rejected_images WHERE stream = 'both' AND night = :n",
        n=night,
    )
    reasons = {(row["image_uri"].rsplit("/", 1)[1], row["model"]): row["reason"] for row in rows}
    for model in ("shades", "moulds"):
        assert reasons["empty.png", model] == "empty"
        assert reasons["text.png", model] == "not_an_image"
        assert reasons["cut.png", model] == "truncated"
        assert reasons["wide.png", model] == "too_many_pixels"
        assert reasons["heavy.png", model] == "too_many_bytes"
    assert len(rows) == 10


def test_gone_and_changed_images_are_rejected_and_scored_when_they_are_back(trained, night):
    images = _shades(6)
    _put("line", night, images)
    run_id = steps.open_run("line", night.isoformat())
    steps.discover(run_id)
    shards = steps.plan_shards(run_id)
    prefix = f"{configuration().stream('line').prefix}/dt={night}"
    object_store().delete([f"{prefix}/000.png"])
    object_store().put(f"{prefix}/001.png", synthetic_images.shade("light", 77_777))
    for shard in shards:
        steps.score_shard(run_id, shard)
    counts = steps.reconcile(run_id)
    assert (counts["scored"], counts["rejected"]) == (4, 2)
    reasons = _query(
        "SELECT reason FROM reporting.rejected_images WHERE run_id = :r ORDER BY reason", r=run_id
    )
    assert [row["reason"] for row in reasons] == ["changed", "gone"]
    # The changed object is a new image (key and ETag). The deleted object comes back unchanged.
    object_store().put(f"{prefix}/000.png", images["000.png"])
    again = steps.score_night("line", night.isoformat())
    assert (again["discovered"], again["scored"], again["rejected"]) == (2, 2, 0)
    rejected = _query(
        "SELECT reason FROM reporting.rejected_images WHERE stream = 'line' AND night = :n", n=night
    )
    assert [row["reason"] for row in rejected] == ["changed"]


def test_too_many_rejections_fail_the_run_after_everything_good_is_stored(trained, night):
    _put("line", night, _shades(4) | {f"bad{n}.png": b"x" for n in range(6)})
    with pytest.raises(
        RunFailedError, match=r"6 of 10 images were rejected \(60.0%; the stream allows 50.0%\)"
    ):
        steps.score_night("line", night.isoformat())
    (run,) = _query(
        "SELECT status, scored, rejected, error, report_uri FROM reporting.nightly_summary WHERE stream = 'line' AND night = :n",
        n=night,
    )
    assert (run["status"], run["scored"], run["rejected"]) == ("failed", 4, 6)
    page = object_store().get(run["report_uri"])[0].decode()
    assert "6 of 10 images were rejected" in page


def test_images_that_arrive_late_are_found_within_the_lookback_and_only_there(trained, night):
    before, long_ago = night - timedelta(days=2), night - timedelta(days=3)
    _put("line", before, _shades(3))
    steps.score_night("line", before.isoformat())
    _put("line", before, _shades(2, start=50))
    _put("line", long_ago, _shades(2, start=60))
    _put("line", night, _shades(5))
    counts = steps.score_night("line", night.isoformat())
    assert counts["discovered"] == 7
    assert (
        len(
            _query(
                "SELECT FROM reporting.predictions WHERE stream = 'line' AND night = :n", n=before
            )
        )
        == 5
    )
    assert (
        _query("SELECT FROM reporting.predictions WHERE stream = 'line' AND night = :n", n=long_ago)
        == []
    )


def test_a_crash_before_the_merge_leaves_nothing_and_the_retry_scores_everything(
    trained, night, monkeypatch
):
    from ml.scoring.results import Results

    _put("line", night, _shades(8))
    run_id = steps.open_run("line", night.isoformat())
    steps.discover(run_id)
    (shard,) = steps.plan_shards(run_id)
    merge = Results.merge

    def crash(self, images, seconds, device):
        raise KeyboardInterrupt

    monkeypatch.setattr(Results, "merge", crash)
    with pytest.raises(KeyboardInterrupt):
        score_shard(UUID(run_id), shard)
    assert _checksum(night)[0]["count"] == 0
    with pytest.raises(
        RunFailedError, match="8 of 8 images are neither scored nor rejected, in shard 0"
    ):
        steps.reconcile(run_id)
    monkeypatch.setattr(Results, "merge", merge)
    assert steps.score_shard(run_id, shard)["scored"] == 8
    assert steps.reconcile(run_id)["scored"] == 8
    # A retry of a shard that is done finds nothing to do.
    assert steps.score_shard(run_id, shard)["scored"] == 0
    assert steps.reconcile(run_id)["scored"] == 8


@contextmanager
def _store_away(monkeypatch):
    """The object store cannot be reached."""
    store = object_store()
    options = {
        **clients.s3_options(store.settings),
        "endpoint": "http://127.0.0.1:9",
        "retry_config": {"max_retries": 0},
    }
    with monkeypatch.context() as broken:
        broken.setattr(clients, "s3_options", lambda settings: options)
        broken.setattr(store, "_clients", {})
        yield


def test_an_outage_of_the_store_fails_the_step_and_rejects_nothing(trained, night, monkeypatch):
    _put("line", night, _shades(4))
    run_id = steps.open_run("line", night.isoformat())
    with (
        _store_away(monkeypatch),
        pytest.raises(ServiceError, match=r"object store failed at .*/streams/line/dt="),
    ):
        steps.discover(run_id)
    steps.discover(run_id)
    (shard,) = steps.plan_shards(run_id)
    with _store_away(monkeypatch), pytest.raises(ServiceError, match="object store failed"):
        steps.score_shard(run_id, shard)
    assert [row["count"] for row in _checksum(night)] == [0, 0]
    assert steps.score_shard(run_id, shard)["scored"] == 4


def test_a_lost_database_session_fails_the_shard_and_a_retry_scores_it(trained, night, monkeypatch):
    _put("line", night, _shades(8))
    run_id = steps.open_run("line", night.isoformat())
    steps.discover(run_id)
    (shard,) = steps.plan_shards(run_id)

    def download_and_lose_the_sessions(store, requests):
        for number, result in enumerate(download(store, requests)):
            if number == 5:
                _query(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename = current_user AND pid <> pg_backend_pid()"
                )
            yield result

    with monkeypatch.context() as broken:
        broken.setattr("ml.scoring.shard.download", download_and_lose_the_sessions)
        with pytest.raises(ServiceError, match="Postgres failed at"):
            steps.score_shard(run_id, shard)
    assert _checksum(night)[0]["count"] == 0
    assert steps.score_shard(run_id, shard)["scored"] == 8
    assert steps.reconcile(run_id)["scored"] == 8


def test_a_shard_that_fails_three_times_fails_the_run_and_the_others_are_kept(
    trained, night, monkeypatch
):
    from ml.scoring.results import Results

    _put("line", night, _shades(25))
    merge = Results.merge
    tries: list[int] = []

    def merge_or_fail(self, images, seconds, device):
        tries.append(self.shard)
        if self.shard == 1:
            raise ServiceError("made to fail.")
        merge(self, images, seconds, device)

    monkeypatch.setattr(Results, "merge", merge_or_fail)
    with pytest.raises(
        RunFailedError, match="10 of 25 images are neither scored nor rejected, in shard 1"
    ) as caught:
        steps.score_night("line", night.isoformat())
    assert tries == [0, 1, 1, 1, 2]
    assert "made to fail" in str(caught.value)
    (run,) = _query(
        "SELECT run_id, status, scored, report_uri, error FROM reporting.nightly_summary"
        " WHERE stream = 'line' AND night = :n",
        n=night,
    )
    assert (run["status"], run["scored"]) == ("failed", 15)
    missing = _query(
        "SELECT image_uri, shard, attempts, error FROM reporting.missing_images"
        " WHERE run_id = :r ORDER BY image_uri",
        r=run["run_id"],
    )
    prefix = f"{configuration().stream('line').prefix}/dt={night}"
    assert [row["image_uri"] for row in missing] == [f"{prefix}/{n:03}.png" for n in range(10, 20)]
    assert {(row["shard"], row["attempts"], row["error"]) for row in missing} == {
        (1, 3, "made to fail")
    }
    page = object_store().get(run["report_uri"])[0].decode()
    for row in missing:
        assert row["image_uri"] in run["error"]
        assert row["image_uri"] in page
    monkeypatch.setattr(Results, "merge", merge)
    assert steps.score_night("line", night.isoformat())["scored"] == 10
    assert _query("SELECT FROM reporting.missing_images WHERE run_id = :r", r=run["run_id"]) == []


def test_an_image_that_one_version_has_rejected_and_another_has_not_scored_is_missing(
    trained, night
):
    """A rejection by one model must not hide that the other model has no result."""
    _put("both", night, _shades(4))
    run_id = steps.open_run("both", night.isoformat())
    steps.discover(run_id)
    steps.plan_shards(run_id)
    with transaction() as session:
        session.execute(
            sa.text(
                "INSERT INTO nightscore.rejection (night, image_id, model, version, run_id, reason)"
                " SELECT m.night, m.image_id, 'shades', v.version, m.run_id, 'not_finite'"
                " FROM nightscore.manifest m JOIN nightscore.scoring_run_model v USING (run_id)"
                " WHERE m.run_id = :r AND v.model = 'shades'"
            ),
            {"r": run_id},
        )
    with pytest.raises(RunFailedError, match="4 of 4 images are neither scored nor rejected"):
        steps.reconcile(run_id)


def test_a_reason_that_may_pass_does_not_close_a_shard_that_was_not_stored(trained, night):
    images = _shades(3)
    _put("line", night, images)
    first = steps.open_run("line", night.isoformat())
    steps.discover(first)
    (shard,) = steps.plan_shards(first)
    prefix = f"{configuration().stream('line').prefix}/dt={night}"
    object_store().delete([f"{prefix}/000.png"])
    steps.score_shard(first, shard)
    assert steps.reconcile(first)["rejected"] == 1
    object_store().put(f"{prefix}/000.png", images["000.png"])
    second = steps.open_run("line", night.isoformat())
    assert steps.discover(second) == 1
    steps.plan_shards(second)
    with pytest.raises(RunFailedError, match="1 of 1 images are neither scored nor rejected"):
        steps.reconcile(second)
    for number in steps.plan_shards(second):
        steps.score_shard(second, number)
    assert steps.reconcile(second)["scored"] == 1


def test_a_run_whose_process_has_died_is_closed_by_the_next_and_a_living_one_is_not(trained, night):
    _put("line", night, _shades(3))
    dead = steps.open_run("line", night.isoformat())
    living = steps.open_run("line", night.isoformat())
    with runs.liveness_lock(UUID(living)):
        steps.score_night("line", night.isoformat())
    status = {
        str(row["run_id"]): (row["status"], row["error"])
        for row in _query(
            "SELECT run_id, status, error FROM reporting.nightly_summary"
            " WHERE stream = 'line' AND night = :n",
            n=night,
        )
    }
    assert status[dead] == ("failed", "its process ended before the run was closed")
    assert status[living] == ("open", None)


def test_runs_of_one_night_at_the_same_time_store_every_image_once(trained, night):
    _put("line", night, _shades(40))
    results: list[dict] = []
    errors: list[BaseException] = []

    def score_once() -> None:
        try:
            results.append(steps.score_night("line", night.isoformat()))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=score_once) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(r["discovered"] == r["scored"] + r["rejected"] for r in results)
    assert _checksum(night)[0]["count"] == 40


def test_every_model_of_a_stream_scores_the_images_with_its_pinned_version(trained, night):
    _put(
        "both",
        night,
        {
            f"{n}.png": synthetic_images.mould("spot" if n < 5 else "normal", 40_000 + n)
            for n in range(20)
        },
    )
    counts = steps.score_night("both", night.isoformat())
    assert (counts["discovered"], counts["scored"]) == (20, 20)
    rows = _query(
        "SELECT model, count(*) AS n FROM reporting.predictions WHERE run_id = :r GROUP BY model ORDER BY model",
        r=counts["run_id"],
    )
    assert rows == [{"model": "moulds", "n": 20}, {"model": "shades", "n": 20}]
    flagged = _query(
        "SELECT * FROM reporting.anomalies WHERE stream = 'both' AND night = :n", n=night
    )
    assert len(flagged) == counts["anomalies"]
    for row in flagged:
        assert row["score"] >= row["threshold"]
        assert object_store().get(row["heatmap_uri"])[0].startswith(b"\xff\xd8\xff")


def _noise(number: int) -> bytes:
    """An image unlike any that the models have seen."""
    random = np.random.default_rng([number, 5])
    return synthetic_images.png(
        random.integers(0, 256, (synthetic_images.SIZE, synthetic_images.SIZE, 3)).astype(np.uint8)
    )


def test_what_is_unlike_anything_seen_is_marked_for_review_in_rows_views_and_report(trained, night):
    images = {f"like{n}.png": synthetic_images.mould("normal", 50_000 + n) for n in range(15)}
    images |= {f"unlike{n}.png": _noise(n) for n in range(5)}
    _put("both", night, images)
    counts = steps.score_night("both", night.isoformat())
    rows = _query(
        "SELECT image_uri, model, version, novelty, review, score, flagged FROM reporting.predictions WHERE run_id = :r",
        r=counts["run_id"],
    )
    (version,) = _query(
        "SELECT * FROM reporting.model_versions WHERE model = 'moulds' AND version = :v",
        v=next(row["version"] for row in rows if row["model"] == "moulds"),
    )
    for row in rows:
        if row["model"] == "moulds":
            assert row["review"] == (row["novelty"] >= version["novelty_threshold"])
        else:
            assert (row["novelty"], row["review"]) == (None, False)
    marked = {row["image_uri"]: row for row in rows if row["review"]}
    assert {f"unlike{n}.png" for n in range(5)} <= {uri.rsplit("/", 1)[1] for uri in marked}
    assert len(marked) < 20
    review = _query(
        "SELECT * FROM reporting.review WHERE stream = 'both' AND night = :n ORDER BY novelty DESC",
        n=night,
    )
    assert {row["image_uri"] for row in review} == set(marked)
    for row in review:
        same = marked[row["image_uri"]]
        for column in ("model", "version", "novelty", "score", "flagged"):
            assert row[column] == same[column]
        assert row["novelty_threshold"] == version["novelty_threshold"]
        assert row["scored_at"] is not None
    (summary,) = _query(
        "SELECT to_review FROM reporting.nightly_summary WHERE run_id = :r", r=counts["run_id"]
    )
    assert summary["to_review"] == counts["to_review"] == len(marked)
    page = object_store().get(counts["report_uri"])[0].decode()
    assert f"{len(marked)}</b>to review" in page
    first = review[0]["image_uri"].rsplit("/", 1)[1]
    gallery = page[page.index("<h2>To review") :]
    assert f'alt="{first}"' in gallery[: gallery.index("</figure>")]


def test_what_was_scored_before_there_was_novelty_is_not_marked(trained, night):
    """The rows as an older release wrote them."""
    _put("line", night, _shades(2))
    run_id = steps.score_night("line", night.isoformat())["run_id"]
    with transaction() as session:
        session.execute(
            sa.text("UPDATE nightscore.scoring_run SET to_review = NULL WHERE run_id = :r"),
            {"r": run_id},
        )
        session.execute(
            sa.text(
                "INSERT INTO nightscore.prediction (night, image_id, model, version, run_id, predicted_class, score, threshold)"
                " SELECT night, image_id, 'moulds', 999, run_id, 'normal', 0.1, 0.5 FROM nightscore.prediction WHERE run_id = :r"
            ),
            {"r": run_id},
        )
    old = _query("SELECT novelty, review FROM reporting.predictions WHERE version = 999")
    assert old == [{"novelty": None, "review": False}] * 2
    assert _query("SELECT FROM reporting.review WHERE version = 999") == []
    (summary,) = _query(
        "SELECT to_review FROM reporting.nightly_summary WHERE run_id = :r", r=run_id
    )
    assert summary["to_review"] is None
    assert "0 to review" not in nightly.render(UUID(run_id))


def test_a_run_keeps_its_versions_while_the_champion_changes(trained, night):
    _put("line", night, _shades(12))
    trigger = f"test/{night}"
    run_id = steps.open_run("line", night.isoformat(), trigger)
    pinned = versions.version_of_alias("shades", "champion")
    newer = registered.other_than_champion("shades")
    promotion.promote("shades", newer, reason="test", by="test")
    assert steps.open_run("line", night.isoformat(), trigger) == run_id
    steps.discover(run_id)
    for shard in steps.plan_shards(run_id):
        steps.score_shard(run_id, shard)
    steps.reconcile(run_id)
    used = _query("SELECT DISTINCT version FROM reporting.predictions WHERE run_id = :r", r=run_id)
    assert used == [{"version": pinned}]
    # The new champion scores the same night again; the old results stay.
    counts = steps.score_night("line", night.isoformat())
    assert counts["scored"] == 12
    assert _checksum(night)[0]["count"] == 24
    promotion.rollback("shades", reason="test", by="test")
    assert versions.version_of_alias("shades", "champion") == pinned


def test_a_night_without_images_is_a_finished_run_with_a_report(trained, night):
    counts = steps.score_night("line", night.isoformat())
    assert counts["discovered"] == 0
    assert "no new images" in object_store().get(counts["report_uri"])[0].decode().lower()


def test_a_stream_without_a_champion_says_what_to_do(trained, night, tmp_path, monkeypatch):
    import os
    from pathlib import Path

    text = (
        Path(os.environ["NIGHTSCORE_CONFIG"])
        .read_text()
        .replace("models: [shades]", "models: [untrained]")
    )
    text += text[text.index("  shades:") : text.index("  moulds:")].replace(
        "shades:", "untrained:", 1
    )
    (tmp_path / "nightscore.yaml").write_text(text)
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(tmp_path / "nightscore.yaml"))
    with pytest.raises(DataError, match="'untrained' has no champion") as caught:
        steps.open_run("line", night.isoformat())
    assert "nightscore train untrained" in caught.value.hint


def test_a_program_that_was_tampered_with_is_not_run(trained, night, monkeypatch, tmp_path):
    _put("line", night, _shades(3))
    run_id = steps.open_run("line", night.isoformat())
    steps.discover(run_id)
    (shard,) = steps.plan_shards(run_id)
    version = versions.version_of_alias("shades", "champion")
    path, _ = programs.fetch(registration.load_registration("shades", version))
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-10] + b"0123456789")
        with pytest.raises(DataError, match="SHA-256"):
            steps.score_shard(run_id, shard)
        assert _checksum(night)[0]["count"] == 0
    finally:
        path.write_bytes(content)
    assert steps.score_shard(run_id, shard)["scored"] == 3


def test_names_with_odd_characters_go_through_everything(trained, night):
    names = ["a b/ü#1.png", "tab\tand \\ slash.png", "quote'\".PNG", "100%.png"]
    _put("line", night, {name: synthetic_images.shade("dark", n) for n, name in enumerate(names)})
    counts = steps.score_night("line", night.isoformat())
    assert counts["scored"] == 4
    rows = _query(
        "SELECT image_uri FROM reporting.predictions WHERE stream = 'line' AND night = :n", n=night
    )
    prefix = f"{configuration().stream('line').prefix}/dt={night}/"
    assert {row["image_uri"] for row in rows} == {prefix + name for name in names}


def test_the_report_shows_what_the_tables_hold_and_runs_no_script_of_an_image_name(trained, night):
    _put("both", night, _shades(5) | {"<script>alert(1)<.png": b"broken"})
    counts = steps.score_night("both", night.isoformat())
    page = object_store().get(counts["report_uri"])[0].decode()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert str(night) in page
    assert "not_an_image" in page
    assert 'src="http' not in page and 'href="http' not in page


def test_the_steps_can_be_run_one_by_one_with_json_values(trained, night):
    _put("line", night, _shades(3))
    run_id = steps.open_run("line", night.isoformat())
    values = [
        steps.discover(run_id),
        steps.plan_shards(run_id),
        steps.score_shard(run_id, 0),
        steps.reconcile(run_id),
        steps.report(run_id),
    ]
    assert json.loads(json.dumps(values)) == values
