"""The sums of results agree with the rows, whatever is stored, replaced, removed or summed again."""

import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from threading import Event
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml.database.connection import engine, engine_for, statement
from ml.database.sums import sum_night
from ml.scoring import results
from ml.settings import settings

FIRST = date(2003, 1, 1)
NIGHTS = [FIRST + timedelta(days=days) for days in range(2)]
IMAGES = range(1, 9)
EDGES = [0.25, 0.5, 0.75]
MODEL = "sums"

# What is counted of the rows: the same as of the sums, by the same keys.
OF_ROWS = {
    "classes": """
        SELECT p.night, p.run_id, p.version, coalesce(i.camera_id, 0), p.predicted_class, count(*),
            count(*) FILTER (WHERE p.flagged), count(*) FILTER (WHERE p.review),
            round(sum(p.confidence)::numeric, 3)
        FROM nightscore.prediction p JOIN nightscore.image i USING (night, image_id)
        WHERE i.stream = :stream GROUP BY 1, 2, 3, 4, 5""",
    "scores": """
        SELECT p.night, p.run_id, p.version, coalesce(i.camera_id, 0),
            width_bucket(p.confidence, :edges), count(*)
        FROM nightscore.prediction p JOIN nightscore.image i USING (night, image_id)
        WHERE i.stream = :stream GROUP BY 1, 2, 3, 4, 5""",
    "rejections": """
        SELECT r.night, r.run_id, r.version, coalesce(i.camera_id, 0), r.reason, count(*)
        FROM nightscore.rejection r JOIN nightscore.image i USING (night, image_id)
        WHERE i.stream = :stream GROUP BY 1, 2, 3, 4, 5""",
}
OF_SUMS = {
    "classes": """
        SELECT s.night, s.run_id, s.version, camera_id, predicted_class, images, flagged, review,
            round(confidence::numeric, 3)
        FROM nightscore.class_sum s JOIN nightscore.scoring_run USING (run_id)
        WHERE stream = :stream""",
    "scores": """
        SELECT s.night, s.run_id, s.version, camera_id, bin, images
        FROM nightscore.score_sum s JOIN nightscore.scoring_run USING (run_id)
        WHERE stream = :stream""",
    "rejections": """
        SELECT s.night, s.run_id, s.version, camera_id, reason, images
        FROM nightscore.rejection_sum s JOIN nightscore.scoring_run USING (run_id)
        WHERE stream = :stream AND images <> 0""",
}


def _owner() -> sa.Engine:
    return engine_for(settings().require_owner_url())


@pytest.fixture(scope="module")
def tables(store_and_database) -> Iterator[None]:
    """Two nights, two cameras and a version with a histogram."""
    with engine().begin() as connection:
        for night in NIGHTS:
            connection.execute(sa.select(sa.func.nightscore.ensure_night(night)))
        for version in (1, 2):
            connection.execute(
                sa.text(
                    "INSERT INTO nightscore.model_version (model, version, task, mlflow_run_id,"
                    " program_sha256, snapshot_uri, metrics, classes, reference_edges,"
                    " reference_shares, synthetic, gate_passed, gate_reason) VALUES (:model,"
                    " :version, 'classification', '', '', '', '{}', '{a,b}', :edges,"
                    " '{0.25,0.25,0.25,0.25}', true, true, '')"
                ),
                {"model": MODEL, "version": version, "edges": EDGES},
            )
        connection.execute(
            sa.text("INSERT INTO nightscore.camera (stream, camera) VALUES ('sums', 'one')")
        )
    yield
    with _owner().begin() as connection:
        connection.exec_driver_sql(f"DELETE FROM nightscore.model_version WHERE model = '{MODEL}'")
        connection.exec_driver_sql("DELETE FROM nightscore.camera WHERE stream = 'sums'")


@dataclass(frozen=True)
class Night:
    """A stream of its own with images of two nights: image → its night and identifier."""

    stream: str
    images: dict[int, tuple[date, int]]

    @classmethod
    def make(cls) -> "Night":
        """Store the images; every third has a camera."""
        stream = f"sums-{uuid.uuid4().hex[:12]}"
        images = {}
        with engine().begin() as connection:
            for number in IMAGES:
                night = NIGHTS[number % 2]
                images[number] = (
                    night,
                    connection.scalar(
                        sa.text(
                            "INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified,"
                            " camera_id) VALUES (:night, :stream, :uri, '', 1, now(), :camera)"
                            " RETURNING image_id"
                        ),
                        {
                            "night": night,
                            "stream": stream,
                            "uri": str(number),
                            "camera": 7 if number % 3 else None,
                        },
                    ),
                )
        return cls(stream, images)

    def open_run(self) -> uuid.UUID:
        """Open a run of the stream."""
        run_id = uuid.uuid4()
        with engine().begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO nightscore.scoring_run (run_id, trigger, stream, night, status,"
                    " lookback_from, max_rejected_share, shard_size) VALUES (:run, :run, :stream,"
                    " :last, 'open', :first, 1, 1)"
                ),
                {"run": str(run_id), "stream": self.stream, "first": FIRST, "last": NIGHTS[-1]},
            )
        return run_id

    def merge(self, run_id: uuid.UUID, outcomes: list["Outcome"]) -> None:
        """Store what came of images, as a shard does."""
        staged: dict[str, list[dict[str, Any]]] = {"prediction": [], "rejection": []}
        for outcome in {(one.image, one.version): one for one in outcomes}.values():
            night, image_id = self.images[outcome.image]
            row = {"night": night, "image": image_id, "version": outcome.version}
            if outcome.reason is None:
                row |= {"confidence": outcome.confidence, "flagged": outcome.confidence > 0.5}
                staged["prediction"].append(row)
            else:
                staged["rejection"].append(row | {"reason": outcome.reason})
        with engine().connect() as connection:
            connection.detach()
            connection.execute(sa.text(results._STAGING))
            for row in staged["prediction"]:
                connection.execute(
                    sa.text(
                        "INSERT INTO staged_prediction VALUES (:night, :image, 'sums', :version,"
                        " CASE WHEN :flagged THEN 'a' ELSE 'b' END, :confidence, NULL, NULL,"
                        " :flagged, NULL, NULL, false)"
                    ),
                    row,
                )
            for row in staged["rejection"]:
                connection.execute(
                    sa.text(
                        "INSERT INTO staged_rejection VALUES (:night, :image, 'sums', :version,"
                        " :reason, '')"
                    ),
                    row,
                )
            values = {"run_id": run_id, "nights": NIGHTS, "stream": self.stream}
            connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(hashtext('merge'), hashtext(:stream))"),
                values,
            )
            for name in ("merge_predictions", "delete_rejections", "merge_rejections"):
                text = statement(f"scoring/sql/{name}")
                connection.execute(text, {key: values[key] for key in text._bindparams})
            connection.commit()

    def counted(self, queries: dict[str, str]) -> dict[str, Counter[Any]]:
        """Return what the rows, or the sums, come to; all seen at the same moment."""
        with _owner().connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ")
            values = {"stream": self.stream, "edges": EDGES}
            return {
                name: Counter(
                    tuple(row)
                    for row in connection.execute(
                        sa.text(query),
                        {k: v for k, v in values.items() if f":{k}" in query},
                    )
                )
                for name, query in queries.items()
            }


@dataclass(frozen=True)
class Outcome:
    """What a version made of an image: a confidence, or the reason of a rejection."""

    image: int
    version: int
    confidence: float
    reason: str | None


outcomes = st.builds(
    Outcome,
    image=st.sampled_from(IMAGES),
    version=st.sampled_from([1, 2]),
    confidence=st.sampled_from([0.1, 0.4, 0.6, 0.9]),
    reason=st.sampled_from([None, None, "gone", "empty"]),
)


@given(runs=st.lists(st.lists(st.lists(outcomes, max_size=8), max_size=3), max_size=3))
@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_sums_agree_with_the_rows_and_are_the_same_when_summed_again(tables, runs):
    night = Night.make()
    for shards in runs:
        run_id = night.open_run()
        for shard in shards:
            night.merge(run_id, shard)
    rows = night.counted(OF_ROWS)
    assert night.counted(OF_SUMS) == rows
    for one in NIGHTS:
        assert sum_night(night.stream, one)
    assert night.counted(OF_SUMS) == rows


def test_the_sums_agree_with_the_rows_when_a_night_is_summed_while_it_is_scored(tables):
    night, ended = Night.make(), Event()

    def sum_again() -> int:
        times = 0
        while not ended.is_set():
            times += sum(sum_night(night.stream, one) for one in NIGHTS)
        return times

    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(sum_again)
        try:
            for number in range(40):
                image, reason = IMAGES[number % len(IMAGES)], ("gone", "empty", None)[number % 3]
                run_id = night.open_run() if number % 10 == 0 else run_id  # noqa: F821
                night.merge(run_id, [Outcome(image, 1 + number % 2, 0.4, reason)])
                assert night.counted(OF_SUMS) == night.counted(OF_ROWS)
        finally:
            ended.set()
        assert again.result(timeout=60) > 0
    assert night.counted(OF_SUMS) == night.counted(OF_ROWS)


def test_sums_outlive_the_rows_that_are_deleted_since_their_time_is_over(tables):
    night = Night.make()
    run_id = night.open_run()
    night.merge(run_id, [Outcome(1, 1, 0.9, None), Outcome(3, 1, 0.9, "empty")])
    before = night.counted(OF_SUMS)
    with _owner().begin() as connection:
        connection.exec_driver_sql("SET LOCAL nightscore.retention = 'on'")
        for table in ("rejection", "prediction"):
            connection.exec_driver_sql(f"DELETE FROM nightscore.{table} WHERE run_id = '{run_id}'")
    assert not sum_night(night.stream, night.images[1][0])
    assert night.counted(OF_SUMS) == before
    assert sum(map(len, before.values())) == 3


def test_a_night_is_not_summed_on_several_snapshots(tables):
    with (
        pytest.raises(sa.exc.DBAPIError, match="needs a transaction with REPEATABLE READ"),
        engine().connect() as connection,
    ):
        connection.execute(sa.select(sa.func.nightscore.sum_night("sums", FIRST)))
