"""The cameras of a stream, and those of images that are stored already, in real Postgres."""

import json
import os
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from ml.cli import command
from ml.config.loading import configuration
from ml.database.connection import engine, rows, transaction
from ml.errors import ConfigurationError, DataError
from ml.report import nightly
from ml.scoring import camera_backfill, discovery
from ml.scoring.cameras import MAX_CAMERAS, Cameras
from ml.storage.object_store import object_store

NIGHTS = iter(date(2031, 1, 1) + timedelta(days=10 * n) for n in range(1000))
PATTERN = r"line-(?P<line>\d+)/(?P<camera>[^/]+)/"
CONFIGURATION = """\
storage: {bucket}
streams:
  {stream}:
    prefix: {bucket}/hall
    models: [moulds]
    key_pattern: '{pattern}'
  plain:
    prefix: {bucket}/plain
    models: [moulds]
models:
  moulds:
    task: anomaly
    dataset: moulds
    architecture: anomaly_segmenter
    input_size: [32, 32]
    training:
      cpu: {{epochs: 1, batch_size: 8, learning_rate: 0.1}}
"""


@pytest.fixture
def hall(store_and_database, bucket, tmp_path, monkeypatch):
    """A stream with a pattern that no other test uses; `use` gives it another pattern."""
    stream = f"hall-{uuid.uuid4().hex[:8]}"
    path = tmp_path / "nightscore.yaml"
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(path))
    version = iter(range(1, 100))

    def use(pattern: str) -> None:
        path.write_text(CONFIGURATION.format(bucket=bucket, stream=stream, pattern=pattern))
        os.utime(path, (next(version),) * 2)  # the file is read again when its time is another

    use(PATTERN)
    return SimpleNamespace(name=stream, prefix=f"{bucket}/hall", use=use)


@pytest.fixture
def night() -> date:
    return next(NIGHTS)


def _query(sql: str, **values):
    with transaction() as session:
        return [tuple(row) for row in session.execute(sa.text(sql), values)]


def _cameras(hall) -> Cameras:
    return Cameras(hall.name, configuration().stream(hall.name))


def _stored(hall) -> set[tuple[str, str, str]]:
    return set(
        _query("SELECT camera, line, product FROM nightscore.camera WHERE stream = :s", s=hall.name)
    )


def _uris(hall, night: date, keys) -> list[str]:
    return [f"{hall.prefix}/dt={night}/{key}" for key in keys]


def _keys(cameras: int, images: int) -> list[str]:
    return [f"line-{n % 2}/cam-{n % cameras:02}/{n:05}.jpg" for n in range(images)]


def test_images_without_a_camera_are_counted_in_one_line_of_the_log(hall, night, caplog):
    cameras = _cameras(hall)
    cameras.assign(_uris(hall, night, ["line-1/a/1.jpg"]))
    cameras.warn_of_unnamed()
    assert not caplog.records
    cameras.assign(_uris(hall, night, ["line-1/a/2.jpg", "x.jpg"]))
    cameras.assign(_uris(hall, night, ["y.jpg"]))
    cameras.warn_of_unnamed()
    (record,) = caplog.records
    assert "2 of 4 images" in record.getMessage() and record.getMessage().endswith("/x.jpg")


def test_a_camera_keeps_its_id_and_a_key_that_names_none_has_none(hall, night):
    uris = _uris(hall, night, ["line-1/a/1.jpg", "line-1/b/1.jpg", "x.jpg", "line-2/a/1.jpg"])
    cameras = _cameras(hall)
    numbers = cameras.assign(uris)
    assert numbers == [1, 2, None, 3]
    assert _stored(hall) == set()  # listing alone stores nothing
    ids = cameras.ids()
    assert _stored(hall) == {("a", "1", ""), ("b", "1", ""), ("a", "2", "")}

    again = _cameras(hall)
    assert [again.known_id(number) for number in again.assign(uris)] == [
        ids[0],
        ids[1],
        None,
        ids[2],
    ]
    assert again.ids() == ids
    assert again.assign(_uris(hall, night, ["line-1/new/1.jpg"])) == [4]
    assert again.ids()[:3] == ids


def test_the_folder_of_the_night_is_no_part_of_what_is_searched(hall, night):
    hall.use("^(?P<camera>[^/]+)/")
    cameras = _cameras(hall)
    cameras.assign(_uris(hall, night, ["cam/1.jpg"]))
    assert cameras.names == [("cam", "", "")]


def test_a_stream_without_a_pattern_has_no_cameras(hall, night):
    cameras = Cameras("plain", configuration().stream("plain"))
    assert cameras.assign(["s3://x/plain/dt=2031-01-01/line-1/a/1.jpg"]) == [None]
    assert cameras.ids() == []


def test_too_many_cameras_are_refused_by_name_and_none_is_stored(hall, night):
    hall.use("(?P<camera>[^/]+)$")
    cameras = _cameras(hall)
    cameras.assign(_uris(hall, night, [f"{n}.jpg" for n in range(MAX_CAMERAS)]))
    with pytest.raises(DataError) as caught:
        cameras.assign(_uris(hall, night, ["one-too-many.jpg"]))
    for text in (hall.name, "(?P<camera>[^/]+)$", "camera 0.jpg; camera 1.jpg", "1,000", "--check"):
        assert text in str(caught.value)
    assert _stored(hall) == set()


def test_two_that_find_cameras_at_once_cannot_store_too_many_together(hall, night):
    first, second = _cameras(hall), _cameras(hall)
    first.assign(_uris(hall, night, [f"line-1/a{n}/1.jpg" for n in range(600)]))
    second.assign(_uris(hall, night, [f"line-1/b{n}/1.jpg" for n in range(600)]))
    first.ids()
    with pytest.raises(DataError, match="camera b0, line 1"):
        second.ids()
    assert len(_stored(hall)) == 600


def test_many_at_once_store_each_camera_once_and_agree_on_its_id(hall, night):
    uris = _uris(hall, night, _keys(50, 200))
    barrier, answers = threading.Barrier(4), []

    def find() -> None:
        cameras = _cameras(hall)
        numbers = cameras.assign(uris)
        barrier.wait()
        ids = cameras.ids()
        answers.append([ids[number - 1] for number in numbers])

    threads = [threading.Thread(target=find) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    assert len(_stored(hall)) == 50


def _insert_run(hall, night: date) -> uuid.UUID:
    run_id = uuid.uuid4()
    with transaction() as session:
        session.execute(
            sa.text(
                "INSERT INTO nightscore.scoring_run (run_id, trigger, stream, night, status,"
                " lookback_from, max_rejected_share, shard_size)"
                " VALUES (:r, :t, :s, :n, 'finished', :n, 1, 1)"
            ),
            {"r": run_id, "t": str(run_id), "s": hall.name, "n": night},
        )
    return run_id


def _pin_version(run_id: uuid.UUID) -> None:
    """Pin hall-moulds/1, whose held-out scores lie half below 0.5 and half above."""
    with transaction() as session:
        session.execute(
            sa.text(
                "INSERT INTO nightscore.model_version (model, version, task, mlflow_run_id,"
                " program_sha256, snapshot_uri, metrics, threshold, classes, reference_edges,"
                " reference_shares, synthetic, gate_passed, gate_reason) VALUES ('hall-moulds', 1,"
                " 'anomaly', 'r', 's', 'u', '{}', 0.5, '{}', '{0.5}', '{0.5,0.5}', false, true, '')"
                " ON CONFLICT DO NOTHING"
            )
        )
        session.execute(
            sa.text("INSERT INTO nightscore.scoring_run_model VALUES (:r, 'hall-moulds', 1)"),
            {"r": run_id},
        )


def _insert_images(hall, night: date, keys: list[str]) -> None:
    with transaction() as session:
        session.execute(sa.text("SELECT nightscore.ensure_night(:n)"), {"n": night})
        session.execute(
            sa.text(
                "INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified)"
                " SELECT :n, :s, uri, 'e', 1, now() FROM unnest(CAST(:u AS text[])) AS uri"
            ),
            {"n": night, "s": hall.name, "u": _uris(hall, night, keys)},
        )


# Every seventh image is rejected, every third of the others flagged.
_INSERT_PREDICTIONS = sa.text(
    "INSERT INTO nightscore.prediction (night, image_id, model, version, run_id, predicted_class,"
    " score, threshold, flagged) SELECT night, image_id, 'hall-moulds', 1, :r,"
    " CASE WHEN image_id % 3 = 0 THEN 'anomalous' ELSE 'normal' END, 0.5, 0.5, image_id % 3 = 0"
    " FROM nightscore.image WHERE night = :n AND stream = :s AND image_id % 7 <> 0"
)
_INSERT_REJECTIONS = sa.text(
    "INSERT INTO nightscore.rejection (night, image_id, model, version, run_id, reason)"
    " SELECT night, image_id, 'hall-moulds', 1, :r, 'truncated'"
    " FROM nightscore.image WHERE night = :n AND stream = :s AND image_id % 7 = 0"
)


def _insert_night(hall, night: date, keys: list[str]) -> uuid.UUID:
    """Images with results, as a release without cameras has left them."""
    run_id = _insert_run(hall, night)
    _insert_images(hall, night, keys)
    with transaction() as session:
        values = {"r": run_id, "n": night, "s": hall.name}
        session.execute(_INSERT_PREDICTIONS, values)
        session.execute(_INSERT_REJECTIONS, values)
        session.execute(
            sa.text(
                "INSERT INTO nightscore.manifest (run_id, night, image_id, shard)"
                " SELECT :r, night, image_id, 0 FROM nightscore.image"
                " WHERE night = :n AND stream = :s"
            ),
            values,
        )
    return run_id


def _backfill(hall, first: date, last: date, on_images=lambda night, images: None):
    return list(camera_backfill.backfill(hall.name, first, last, on_images))


def _right(hall, night: date) -> bool:
    """Whether each image has the camera that its key names."""
    return not _query(
        "SELECT uri, camera.camera, camera.line FROM nightscore.image"
        " LEFT JOIN nightscore.camera USING (camera_id)"
        " WHERE night = :n AND image.stream = :s AND (camera.stream IS NULL OR camera.stream = :s)"
        " AND (substring(uri FROM 'line-(.*?)/'), substring(uri FROM 'line-.*?/(.*?)/'))"
        " IS DISTINCT FROM (camera.line, camera.camera)",
        n=night,
        s=hall.name,
    )


def _sums(run_id: uuid.UUID) -> list[list[tuple]]:
    return [
        _query(f"SELECT {columns} FROM nightscore.{table} WHERE run_id = :r AND images <> 0 ORDER BY {columns}", r=run_id)
        for table, columns in (
            ("class_sum", "camera_id, predicted_class, images, flagged"),
            ("rejection_sum", "camera_id, reason, images"),
        )
    ]  # fmt: skip


def _counted(run_id: uuid.UUID, night: date) -> list[list[tuple]]:
    """What `_sums` should be, counted from the rows."""
    return [
        _query(
            "SELECT coalesce(camera_id, 0), predicted_class, count(*), count(*) FILTER (WHERE flagged)"
            " FROM nightscore.prediction JOIN nightscore.image USING (night, image_id)"
            " WHERE night = :n AND run_id = :r GROUP BY 1, 2 ORDER BY 1, 2", r=run_id, n=night),
        _query(
            "SELECT coalesce(camera_id, 0), reason, count(*)"
            " FROM nightscore.rejection JOIN nightscore.image USING (night, image_id)"
            " WHERE night = :n AND run_id = :r GROUP BY 1, 2 ORDER BY 1, 2", r=run_id, n=night),
    ]  # fmt: skip


def _is_done(hall, run_id: uuid.UUID, night: date) -> bool:
    return _right(hall, night) and _sums(run_id) == _counted(run_id, night)


def test_stored_images_get_their_cameras_and_the_sums_follow(hall, night):
    runs = {
        night + timedelta(days=n): _insert_night(hall, night + timedelta(days=n), _keys(6, 40))
        for n in range(3)
    }
    _insert_images(hall, night, ["without/1.jpg"])
    assert {row[0] for row in _sums(runs[night])[0]} == {0}
    last = night + timedelta(days=1)
    done = _backfill(hall, date.min, last)
    assert [(each.night, each.images, each.changed, each.is_summed) for each in done] == [
        (night, 41, 40, True),
        (last, 40, 40, True),
    ]
    for each in (night, last):
        assert _is_done(hall, runs[each], each)
        assert len({row[0] for row in _sums(runs[each])[0]} - {0}) == 6
    # The night after `last` is left as it was.
    assert _query("SELECT count(camera_id) FROM nightscore.image WHERE night = :n",
                  n=night + timedelta(days=2)) == [(0,)]  # fmt: skip
    assert [each.changed for each in _backfill(hall, date.min, date.max)] == [0, 0, 40]
    assert len(_stored(hall)) == 6


def test_another_pattern_moves_the_images_to_its_cameras(hall, night):
    run_id = _insert_night(hall, night, _keys(6, 40))
    _backfill(hall, night, night)
    hall.use(r"/(?P<camera>cam-0[12])/")
    assert [each.changed for each in _backfill(hall, night, night)] == [40]
    counts = _query(
        "SELECT camera, line, count(*) FROM nightscore.image LEFT JOIN nightscore.camera"
        " USING (camera_id) WHERE night = :n AND image.stream = :s GROUP BY 1, 2 ORDER BY 1",
        n=night, s=hall.name)  # fmt: skip
    assert counts == [("cam-01", "", 7), ("cam-02", "", 7), (None, None, 26)]
    assert _sums(run_id) == _counted(run_id, night)


def test_an_interrupted_backfill_is_completed_by_the_next(hall, night, monkeypatch):
    monkeypatch.setattr(camera_backfill, "BATCH", 7)
    later = night + timedelta(days=1)
    runs = {each: _insert_night(hall, each, _keys(6, 40)) for each in (night, later)}

    def interrupt(at: date, images: int) -> None:
        if at == later and images > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _backfill(hall, night, later, interrupt)
    assert _is_done(hall, runs[night], night)
    assert not _right(hall, later)
    # Another interruption, between the last batch of a night and its sums.
    cameras = _cameras(hall)
    changes = camera_backfill._find_changes(cameras, hall.name, later, lambda *_: None)
    camera_backfill._update(cameras, hall.name, changes)
    assert _right(hall, later) and not _is_done(hall, runs[later], later)

    assert [each.changed for each in _backfill(hall, night, later)] == [0, 0]
    assert _is_done(hall, runs[later], later)


def test_too_many_cameras_leave_a_night_as_it_was(hall, night):
    hall.use("(?P<camera>[^/]+)$")
    run_id = _insert_night(hall, night, _keys(6, MAX_CAMERAS + 1))
    before = _sums(run_id)
    with pytest.raises(DataError, match="more than 1,000 cameras"):
        _backfill(hall, night, night)
    assert _query("SELECT count(camera_id) FROM nightscore.image WHERE night = :n", n=night) == [
        (0,)
    ]
    assert _sums(run_id) == before
    assert _stored(hall) == set()


@contextmanager
def _merge(hall, run_id: uuid.UUID, night: date):
    """Store results as a shard does, and keep the transaction open."""
    with engine().connect() as connection, connection.begin():
        connection.execute(
            sa.text("SELECT pg_advisory_xact_lock(hashtext('merge'), hashtext(:s))"),
            {"s": hall.name},
        )
        connection.execute(_INSERT_PREDICTIONS, {"r": run_id, "n": night, "s": hall.name})
        yield


def _wait_until_something_waits_for_the_merge(hall) -> None:
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND classid::bigint = hashtext('merge')::bigint & 4294967295"
        " AND objid::bigint = hashtext(:s)::bigint & 4294967295"
    )
    pause = threading.Event()
    while _query(waiting, s=hall.name) == [(0,)]:
        pause.wait(0.02)


@pytest.mark.timeout(120)
def test_results_that_are_stored_meanwhile_are_counted_by_the_new_cameras(hall, night):
    """The merge has counted its images without cameras when these get theirs."""
    run_id = _insert_run(hall, night)
    _insert_images(hall, night, _keys(6, 40))
    # So that the triggers look for cameras at all.
    cameras = _cameras(hall)
    cameras.assign(_uris(hall, night, _keys(6, 40)))
    cameras.ids()
    thread = threading.Thread(target=_backfill, args=(hall, night, night))
    with _merge(hall, run_id, night):
        thread.start()
        _wait_until_something_waits_for_the_merge(hall)
        assert _right(hall, night)  # the update itself waits for nobody
    thread.join()
    assert _is_done(hall, run_id, night)
    assert 0 not in {row[0] for row in _sums(run_id)[0]}


def _put(hall, night: date, keys: list[str]) -> None:
    for key in keys:
        object_store().put(f"{hall.prefix}/dt={night}/{key}", b"x")


def _discover_at_once(run_ids: list[uuid.UUID]) -> list[int]:
    with ThreadPoolExecutor(len(run_ids)) as executor:
        return list(executor.map(discovery.discover, run_ids))


def test_two_discoveries_at_once_give_each_image_its_camera(hall, night):
    _put(hall, night, [*_keys(6, 24), "without/1.jpg"])
    run_ids = [_insert_run(hall, night) for _ in range(2)]
    for run_id in run_ids:
        _pin_version(run_id)
    assert _discover_at_once(run_ids) == [25, 25]
    assert _right(hall, night)
    assert len(_stored(hall)) == 6
    assert [each.changed for each in _backfill(hall, night, night)] == [0]


def test_a_discovery_that_finds_too_many_cameras_stores_nothing(hall, night, monkeypatch):
    monkeypatch.setattr("ml.scoring.cameras.MAX_CAMERAS", 5)
    _put(hall, night, _keys(6, 12))
    run_id = _insert_run(hall, night)
    with pytest.raises(DataError, match="more than 5 cameras"):
        discovery.discover(run_id)
    assert _stored(hall) == set()
    assert _query("SELECT count(*) FROM nightscore.image WHERE stream = :s", s=hall.name) == [(0,)]
    # The corrected pattern is not held up by what the wrong one found.
    hall.use(r"line-(?P<camera>\d+)/")
    _pin_version(run_id)
    assert discovery.discover(run_id) == 12
    assert _stored(hall) == {("0", "", ""), ("1", "", "")}


def test_a_stream_without_a_pattern_is_refused(hall):
    with pytest.raises(ConfigurationError, match="'plain' has no key_pattern"):
        list(camera_backfill.backfill("plain", date.min, date.max, lambda *_: None))
    with pytest.raises(ConfigurationError, match="'plain' has no key_pattern"):
        camera_backfill.check("plain", date(2031, 1, 1), lambda _: None)


def test_the_command_shows_what_a_pattern_finds_and_writes_nothing(hall, night, capsys):
    for key in (
        "line-1/b/1.jpg",
        "line-1/b/2.JPG",
        "line-2/a/1.jpg",
        "3.jpg",
        "line-1/b/notes.txt",
    ):
        object_store().put(f"{hall.prefix}/dt={night}/{key}", b"x")
    command()(
        ["cameras", hall.name, "--check", "--date", str(night), "--json"], standalone_mode=False
    )
    assert json.loads(capsys.readouterr().out) == {
        "night": str(night),
        "cameras": [
            {"camera": "b", "line": "1", "product": "", "images": 2},
            {"camera": "a", "line": "2", "product": "", "images": 1},
        ],
        "without_camera": 1,
        "examples": [f"{hall.prefix}/dt={night}/3.jpg"],
    }
    assert _stored(hall) == set()
    command()(["cameras", hall.name, "--check", "--date", str(night)], standalone_mode=False)
    table = capsys.readouterr().out.splitlines()
    assert [line.split() for line in table if line.startswith(("a", "b"))] == [
        ["b", "1", "2"],
        ["a", "2", "1"],
    ]


def test_the_command_assigns_cameras_and_says_how_many_images_it_changed(hall, night, capsys):
    run_id = _insert_night(hall, night, _keys(6, 40))
    arguments = ["cameras", hall.name, "--first", str(night), "--json"]
    command()(arguments, standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == [
        {"night": str(night), "images": 40, "changed": 40, "is_summed": True}
    ]
    assert _is_done(hall, run_id, night)


def _report_rows(run_id: uuid.UUID, night: date, most: int = 100) -> list[dict]:
    with transaction() as session:
        return rows(
            session, "report/sql/cameras",
            run_id=run_id, nights=[night], most=most,
        )  # fmt: skip


def test_a_report_shows_the_cameras_the_worst_first(hall, night):
    run_id = _insert_night(hall, night, [*_keys(6, 300), "without/1.jpg"])
    _pin_version(run_id)
    assert _report_rows(run_id, night) == []
    assert "<h2>Cameras" not in nightly.render(run_id)
    _backfill(hall, night, night)

    shown = _report_rows(run_id, night)
    counted = _query(
        "SELECT camera, count(prediction), count(*) FILTER (WHERE flagged), count(rejection)"
        " FROM nightscore.image LEFT JOIN nightscore.camera USING (camera_id)"
        " LEFT JOIN nightscore.prediction USING (night, image_id)"
        " LEFT JOIN nightscore.rejection USING (night, image_id)"
        " WHERE night = :n AND image.stream = :s GROUP BY 1", n=night, s=hall.name)  # fmt: skip
    assert sorted((r["camera"] or "", r["scored"], r["flagged"], r["rejected"]) for r in shown) == [
        (camera or "", *counts) for camera, *counts in sorted(counted, key=lambda r: r[0] or "")
    ]
    shares = [
        (row["flagged"] + row["rejected"]) / (row["scored"] + row["rejected"]) for row in shown
    ]
    assert shares == sorted(shares, reverse=True)
    # All scores are 0.5, in the upper of two bins that should have half each.
    assert all(row["psi"] > 0.25 for row in shown if row["scored"] > 10)
    assert [row["rows"] for row in _report_rows(run_id, night, most=2)] == [7, 7]

    page = nightly.render(run_id)
    assert "<h2>Cameras" in page
    table, _, gallery = page.partition("<h2>Anomalies")
    assert "<td>1</td>" in table and "cam-03" in table
    # Which cameras are flagged depends on the ids of the images.
    assert re.search(r"camera cam-0\d, line 0<", gallery)


def test_the_drift_of_a_stream_with_one_camera_is_that_of_the_stream(hall, night):
    run_id = _insert_run(hall, night)
    _pin_version(run_id)  # the triggers read the version's bins
    _insert_images(hall, night, _keys(1, 1))
    _insert_images(hall, night, [f"line-0/cam-00/{n}-.jpg" for n in range(150)])
    with transaction() as session:
        session.execute(_INSERT_PREDICTIONS, {"r": run_id, "n": night, "s": hall.name})
    _backfill(hall, night, night)
    (row,) = _report_rows(run_id, night)
    assert [(row["psi"], row["alarm"])] == [
        (pytest.approx(psi), alarm)
        for psi, alarm in _query(
            "SELECT psi, alarm FROM reporting.score_drift WHERE stream = :s AND night = :n",
            s=hall.name,
            n=night,
        )
    ]
