"""Streams do not wait for each other when they find the images of a night."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta

import sqlalchemy as sa
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from ml.config.loading import configuration
from ml.database.connection import engine
from ml.scoring import discovery, runs
from ml.storage.object_store import object_store
from tests.support import synthetic_images

# The partitions of the first night are there, those of the second are not.
FIRST = date(2004, 5, 1)
SECOND = FIRST + timedelta(days=1)


def _put(stream: str, night: date, name: str) -> str:
    uri = f"{configuration().stream(stream).prefix}/dt={night}/{name}.png"
    object_store().put(uri, synthetic_images.shade("dark", 4_000 + night.day))
    return uri


@contextmanager
def _image_being_stored(stream: str, uri: str):
    """An image that another session stores, and has not committed: who stores it too has to wait."""
    _, etag = object_store().get(uri)
    with engine().connect() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified)"
                " VALUES (:night, :stream, :uri, :etag, 1, now())"
            ),
            {"night": FIRST, "stream": stream, "uri": uri, "etag": etag},
        )
        yield connection.scalar(sa.text("SELECT pg_backend_pid()"))
        connection.rollback()


@retry(
    retry=retry_if_result(lambda seen: not seen), stop=stop_after_delay(30), wait=wait_fixed(0.02)
)
def _is_waited_for(pid: int) -> bool:
    """Wait until a session waits for another one."""
    waiting = sa.text(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE :pid = ANY (pg_blocking_pids(pid)))"
    )
    with engine().connect() as connection:
        return bool(connection.scalar(waiting, {"pid": pid}))


def test_a_stream_that_is_held_up_after_it_began_a_night_holds_up_no_other(trained):
    with engine().begin() as connection:
        connection.execute(sa.select(sa.func.nightscore.ensure_night(FIRST)))
    uri = _put("line", FIRST, "late")
    for stream in ("line", "both"):
        _put(stream, SECOND, "new")
    held_up, free = (runs.open_run(stream, SECOND) for stream in ("line", "both"))
    with ThreadPoolExecutor(1) as pool:
        with _image_being_stored("line", uri) as holder:
            waiting = pool.submit(discovery.discover, held_up)
            _is_waited_for(holder)
            # It has the night's partitions made, and its transaction is still open.
            assert discovery.discover(free) == 1
            assert not waiting.done()
        assert waiting.result(timeout=60) == 2
