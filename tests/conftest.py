"""Real services for the tests, started once in a temporary folder on free ports."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Three of these processes share two cores; threads of theirs would only wait for each other. Read
# when torch is imported, so it is said before.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from ml.settings import settings
from ml.stack.local import LocalStack
from ml.storage.object_store import object_store
from tests.support import stacks, whole_stack

# The longest first, so that no process is left alone with one at the end.
ORDER = (
    "docker",
    "production",
    "e2e",
    "faults",
    "integration",
    "upgrade",
    "hostile",
    "unit/program/test_runtime_decisions.py",
    "unit",
    "gpu",
)
# What a developer has set must not reach the tests' services.
FOREIGN = ("NIGHTSCORE_", "AWS_ACCESS", "AWS_SECRET", "AWS_ENDPOINT", "AWS_SESSION", "MLFLOW_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.nodeid.removeprefix("tests/")))


def _place(nodeid: str) -> int:
    return next(at for at, part in enumerate(ORDER) if nodeid.startswith(part))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "_ByFile":
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    """A file's tests run in one process; so do all that use the stack with Airflow."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return (
            "airflow"
            if _folder(nodeid) == "e2e" or file == "tests/faults/test_airflow.py"
            else file
        )


def _folder(nodeid: str) -> str:
    return nodeid.split("/")[1]


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    kept = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            del os.environ[name]
    os.environ["NIGHTSCORE_DEVICE"] = "cpu"
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder that the processes of this session have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def stack(request, tmp_path_factory, shared_folder, _clean_environment) -> Iterator[LocalStack]:
    """A stack of which nothing is started yet; stopped at the end.

    It holds the trained models if any test of the session asks for them.
    """
    home = tmp_path_factory.mktemp("services") / ".nightscore"
    if any("trained" in item.fixturenames for item in request.session.items):
        stacks.copy_of_trained(shared_folder, home)
    os.environ["NIGHTSCORE_HOME"] = str(home)
    settings.cache_clear()
    object_store.cache_clear()
    made = LocalStack(home)
    yield made
    made.down()


@pytest.fixture(scope="session")
def store_and_database(stack: LocalStack) -> LocalStack:
    """Postgres, migrated, and S3."""
    stack.up(("postgres", "s3"), ports=stacks.ports())
    object_store.cache_clear()
    return stack


@pytest.fixture(scope="session")
def services(store_and_database: LocalStack) -> LocalStack:
    """Postgres, S3 and MLflow."""
    store_and_database.up(("postgres", "s3", "mlflow"))
    return store_and_database


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory, _clean_environment) -> Iterator[Path]:
    """The state folder of a stack with Airflow that has done `nightscore run`.

    tests/e2e look at it first; tests/faults/test_airflow.py kills its scheduler and stops it, so that
    it does not run beside what comes later.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in whole_stack.PROMPT_SCHEDULER.items():
            patch.setenv(name, value)
        with whole_stack.running(tmp_path_factory.mktemp("stack")) as home:
            yield home


@pytest.fixture
def bucket(store_and_database: LocalStack) -> str:
    """A prefix of the bucket that no other test uses."""
    return f"s3://nightscore/test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def at_endpoint(monkeypatch):
    """Lets this process, and those it starts, reach the object store at another address."""

    def use(endpoint: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        settings.cache_clear()
        object_store.cache_clear()

    yield use
    monkeypatch.undo()
    settings.cache_clear()
    object_store.cache_clear()


@pytest.fixture(scope="session")
def trained(services: LocalStack, tmp_path_factory) -> Iterator[str]:
    """A configuration in use, with both its models trained; returns the storage prefix."""
    path = tmp_path_factory.mktemp("configuration") / "nightscore.yaml"
    path.write_text(stacks.CONFIGURATION.format(bucket=stacks.BUCKET))
    os.environ["NIGHTSCORE_CONFIG"] = str(path)
    yield stacks.BUCKET
    del os.environ["NIGHTSCORE_CONFIG"]
