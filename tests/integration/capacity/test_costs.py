"""The costs of a stream are read from its newest finished runs; what they do not say is a default."""

from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import pytest

from ml.capacity import costs
from ml.capacity.costs import DEFAULT, MEASURED, default_rate
from ml.database.connection import transaction
from ml.database.tables import FAILED, FINISHED, ScoringRun, Shard
from tests.support import stacks

NIGHT = date(2026, 3, 1)
BEGUN = datetime(2026, 3, 1, 22, tzinfo=UTC)


@pytest.fixture
def stream(store_and_database, tmp_path, monkeypatch) -> str:
    path = tmp_path / "nightscore.yaml"
    name = f"costs-{uuid4().hex[:8]}"  # no other test has stored runs of it
    text = stacks.CONFIGURATION.format(bucket=stacks.BUCKET)
    path.write_text(text.replace("  both:\n", f"  {name}:\n"))
    monkeypatch.setenv("NIGHTSCORE_CONFIG", str(path))
    return name


def _add_run(stream: str, status: str, *devices: str, engine_s: float = 8) -> None:
    """A run of an hour whose shards follow each other: 1,000 images in ten seconds each."""
    run_id = uuid4()
    ends = BEGUN + timedelta(seconds=4 + 10 * len(devices))
    with transaction() as session:
        session.add(
            ScoringRun(
                run_id=run_id, trigger=str(run_id), stream=stream, night=NIGHT, status=status,
                lookback_from=NIGHT, max_rejected_share=0.5, shard_size=1000, opened_at=BEGUN,
                finished_at=ends, discovered=1000 * len(devices), scored=990 * len(devices),
                rejected=10 * len(devices), anomalies=20 * len(devices),
            )
        )  # fmt: skip
        session.flush()
        for number, device in enumerate(devices):
            start = BEGUN + timedelta(seconds=3 + 10 * number)
            session.add(
                Shard(
                    run_id=run_id, number=number, images=1000, started_at=start, attempts=1,
                    finished_at=start + timedelta(seconds=10), engine_images=1000,
                    engine_seconds=engine_s, device=device,
                )
            )  # fmt: skip


def test_a_stream_without_nights_has_the_defaults(stream):
    known = costs.read(stream, 1000)
    assert known.cpu_images_per_second == default_rate(1000)
    assert known.sources["cpu_images_per_second"] == DEFAULT
    assert (known.models, known.runs) == (2, 0)


def test_the_newest_finished_runs_are_measured(stream):
    _add_run(stream, FINISHED, "cpu", "cpu")
    _add_run(stream, FAILED, "cpu", engine_s=1)
    known = costs.read(stream, 1000)
    assert known.runs == 1
    assert known.cpu_images_per_second == pytest.approx(125)
    assert known.shard_seconds == pytest.approx(2)
    assert known.outside_seconds_per_image == pytest.approx(4 / 2000)
    assert known.rejected_share == pytest.approx(0.01)
    assert known.heatmap_share == pytest.approx(0.02)
    assert known.gpu_images_per_second is None
    assert known.sources["shard_seconds"] == MEASURED


def test_a_gpu_has_a_rate_of_its_own(stream):
    _add_run(stream, FINISHED, "cpu", "NVIDIA H100 GPU-1", engine_s=4)
    known = costs.read(stream, 1000)
    assert known.gpu_images_per_second == pytest.approx(250)
    assert known.cpu_images_per_second == pytest.approx(250)
