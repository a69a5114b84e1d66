"""Writing a shard's results: what is staged on a thread, and how that thread ends."""

import os
import signal
import threading
from datetime import date
from uuid import uuid4

import numpy as np
import pytest

from ml.scoring.engine import Item, Result
from ml.scoring.results import Results
from ml.settings import settings
from tests.support import evidence
from tests.support.proxy import Asked, Proxy, Wrong


@pytest.fixture
def slow_uploads(store_and_database, at_endpoint):
    """An object store that takes two seconds to accept anything."""

    def decide(asked: Asked) -> Wrong | None:
        return Wrong(wait_s=2) if asked.method == "PUT" else None

    with Proxy(settings().s3_endpoint, decide) as proxy:
        at_endpoint(proxy.url)
        yield


@pytest.fixture
def ctrl_c_interrupts():
    """As in a terminal; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _flagged() -> Result:
    return Result(
        Item(date(2026, 1, 1), 1, "s3://nightscore/a.png", "etag", 10), "moulds", 1,
        score=0.9, threshold=0.5, flagged=True,
        pixels=np.zeros((3, 16, 16), np.uint8), heat=np.zeros((4, 4), np.float32),
    )  # fmt: skip


@pytest.mark.timeout(60)
def test_ctrl_c_leaves_no_thread_behind_on_the_connection(slow_uploads, ctrl_c_interrupts, bucket):
    """Two threads on one connection would wait for each other, or crash the process."""
    ctrl_c = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    with (
        pytest.raises(KeyboardInterrupt),
        Results(uuid4(), 0, "line", f"{bucket}/heatmaps") as results,
    ):
        results.add([_flagged()])
        ctrl_c.start()
        results.merge(1, 0.5)
    # All that the thread may still do is end.
    evidence.wait_for(lambda: "results" not in _running(), timeout_s=0.5)


def _running() -> set[str]:
    return {thread.name for thread in threading.enumerate()}
