"""Real services for the tests, started once in a temporary folder on free ports."""

import os
import uuid
from collections.abc import Iterator

import pytest

from ml.settings import settings
from ml.stack.local import LocalStack
from ml.store import object_store

# What a developer has set must not reach the tests' services.
_FOREIGN = ("NIGHTSCORE_", "AWS_ACCESS", "AWS_SECRET", "AWS_ENDPOINT", "AWS_SESSION", "MLFLOW_")


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    kept = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(_FOREIGN):
            del os.environ[name]
    os.environ["NIGHTSCORE_DEVICE"] = "cpu"
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="session")
def stack(tmp_path_factory, _clean_environment) -> Iterator[LocalStack]:
    """A stack of which nothing is started yet; stopped at the end."""
    home = tmp_path_factory.mktemp("services") / ".nightscore"
    os.environ["NIGHTSCORE_HOME"] = str(home)
    settings.cache_clear()
    object_store.cache_clear()
    made = LocalStack(home)
    yield made
    made.down()


@pytest.fixture(scope="session")
def store_and_database(stack: LocalStack) -> LocalStack:
    """Postgres, migrated, and S3."""
    stack.up(("postgres", "s3"))
    object_store.cache_clear()
    return stack


@pytest.fixture(scope="session")
def services(store_and_database: LocalStack) -> LocalStack:
    """Postgres, S3 and MLflow."""
    store_and_database.up(("postgres", "s3", "mlflow"))
    return store_and_database


@pytest.fixture
def bucket(store_and_database: LocalStack) -> str:
    """A prefix of the bucket that no other test uses."""
    return f"s3://nightscore/test-{uuid.uuid4().hex[:12]}"
