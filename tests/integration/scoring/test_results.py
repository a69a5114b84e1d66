"""Results on their way into Postgres, and Ctrl-C in the middle of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml.settings import settings
from tests.support.proxy import Fault, HttpRequest, Proxy

# Run in a process of its own, so that only that is interrupted. Two threads on one connection would
# wait for each other, or crash the process.
_CODE = """
import os, signal, sys, threading, time
from datetime import date
from uuid import uuid4
import numpy as np
from ml.scoring.engine import BatchResult, Item, Prediction
from ml.scoring.results import Results

# As in a terminal: a process that a shell starts in the background ignores SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
flagged = Prediction(
    Item(date(2026, 1, 1), 1, "s3://nightscore/a.png", "etag", 10), "moulds", 1, "anomalous",
    score=0.9, threshold=0.5, flagged=True,
    pixels=np.zeros((3, 16, 16), np.uint8), anomaly_map=np.zeros((4, 4), np.float32),
)
try:
    with Results(uuid4(), 0, "line", sys.argv[1], []) as results:
        results.add(BatchResult([flagged]))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        results.merge(1, 0.5, "cpu")
except KeyboardInterrupt:
    # The thread may only be about to end.
    (left,) = [t for t in threading.enumerate() if t.name == "results"] or [None]
    if left is not None:
        left.join(60)
    print("nothing is left" if left is None or not left.is_alive() else "a thread is left")
"""


@pytest.fixture
def slow_uploads(store_and_database, at_endpoint):
    """An object store that takes two seconds to accept anything."""

    def decide(request: HttpRequest) -> Fault | None:
        return Fault(wait_s=2) if request.method == "PUT" else None

    with Proxy(settings().s3_endpoint, decide) as proxy:
        at_endpoint(proxy.url)
        yield


def test_ctrl_c_leaves_no_thread_behind_on_the_connection(slow_uploads, bucket):
    done = subprocess.run(
        [sys.executable, "-c", _CODE, f"{bucket}/heatmaps"],
        cwd=Path(__file__).parents[3],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "nothing is left\n"), done.stderr
