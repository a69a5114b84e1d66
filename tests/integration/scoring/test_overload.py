"""When Postgres is slow, the work before it waits; memory does not grow."""

import signal
import time
from collections.abc import Callable
from datetime import date

import psutil

from ml.config.loading import configuration
from ml.parallel import parallel_map
from ml.program.runtime import CpuRuntime
from ml.scoring.engine import thread_count
from ml.storage.download import CONNECTIONS
from ml.storage.object_store import object_store
from tests.support import evidence, synthetic_images
from tests.support.night import Night
from tests.support.process import Scoring
from tests.support.proxy import Proxy

_STREAM = "long"  # its nights are one shard
# Images that may be under way: before the engine's threads, in them, and before the writer.
_AHEAD = (2 * thread_count("cpu") + 1 + 6) * CpuRuntime.batch_size + CONNECTIONS
# The session that has the temporary table of predictions: its schema bears the session's number.
_WRITERS = """
    SELECT pid
    FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    CROSS JOIN pg_stat_get_backend_pid(substring(nspname FROM '^pg_temp_([0-9]+)$')::int) AS pid
    JOIN pg_stat_activity USING (pid)
    WHERE relname = 'staged_prediction' AND application_name = 'nightscore'
"""


def _night(images: int) -> Night:
    """A night of small images, few of them different."""
    on = date(2041, 5, 6)
    folder = f"{configuration().stream(_STREAM).prefix}/dt={on}"
    content = [synthetic_images.shade("dark", 200_000 + n) for n in range(50)]
    uris = [f"{folder}/{n:05}.png" for n in range(images)]

    def put(number: int) -> None:
        object_store().put(uris[number], content[number % 50])

    for _ in parallel_map(put, range(images), threads=16, buffer_size=64):
        pass
    return Night(on, frozenset(uris), frozenset(), _STREAM)


def test_images_are_not_fetched_ahead_of_a_postgres_that_stands_still(trained):
    tonight = _night(3 * _AHEAD)
    with Proxy(object_store().settings.s3_endpoint) as proxy:
        process = Scoring(tonight, AWS_ENDPOINT_URL=proxy.url)
        process.go()
        evidence.wait_for(lambda: proxy.seen["GET"] > CpuRuntime.batch_size, timeout_s=120)
        (session,) = evidence.query(_WRITERS)
        writer = psutil.Process(session["pid"])
        writer.send_signal(signal.SIGSTOP)
        try:
            fetched = _settled(lambda: proxy.seen["GET"])
        finally:
            writer.send_signal(signal.SIGCONT)
        # Some images were stored before it stood still, and some requests are listings.
        assert 0 < fetched < 2 * _AHEAD
        counts = process.finish()
    assert counts["scored"] == len(tonight.uris)
    assert evidence.of_complete_night(tonight, ("shades",)).is_clean


def _settled(number: Callable[[], int], still_s: float = 3.0) -> int:
    """The number, as soon as it has not changed for a few seconds."""
    last, since = number(), time.monotonic()
    while time.monotonic() - since < still_s:
        time.sleep(0.1)
        if (now := number()) != last:
            last, since = now, time.monotonic()
    return last
