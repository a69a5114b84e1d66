"""Retries switched off, for tests of errors that do not pass."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ml.timeouts import client_limits

_NAME = "NIGHTSCORE_RETRY_FOR_S"


@contextmanager
def no_retries() -> Iterator[None]:
    """Let each request to S3 and to MLflow's REST API be made only once."""
    before = os.environ.get(_NAME)
    os.environ[_NAME] = "0"
    client_limits.cache_clear()
    try:
        yield
    finally:
        del os.environ[_NAME]
        if before is not None:
            os.environ[_NAME] = before
        client_limits.cache_clear()
