"""Real services for the tests, started once in a temporary folder on free ports."""

import os
import uuid
from collections.abc import Iterator

import pytest

from ml.settings import settings
from ml.stack.local import LocalStack
from ml.store import object_store
from tests.support import drawing

# What a developer has set must not reach the tests' services.
FOREIGN = ("NIGHTSCORE_", "AWS_ACCESS", "AWS_SECRET", "AWS_ENDPOINT", "AWS_SESSION", "MLFLOW_")


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


CONFIGURATION = """\
storage: {bucket}
streams:
  line:
    prefix: {bucket}/streams/line
    models: [shades]
    lookback_nights: 2
    shard_size: 10
    max_rejected_share: 0.5
  both:
    prefix: {bucket}/streams/both
    models: [shades, moulds]
    shard_size: 100
    limits: {{max_pixels: 10000, max_bytes: 100000}}
  faults:
    prefix: {bucket}/streams/faults
    models: [shades, moulds]
    lookback_nights: 0
    shard_size: 40
  long:
    prefix: {bucket}/streams/long
    models: [shades]
    lookback_nights: 0
models:
  shades:
    task: classification
    dataset: shades
    architecture: residual_network
    input_size: [16, 16]
    options: {{width: 8}}
    holdout_share: 0.3
    training:
      cpu: {{epochs: 2, batch_size: 32, learning_rate: 0.1}}
    gate: {{metric: accuracy, minimum: 0.7, max_drop: 0.05}}
  moulds:
    task: anomaly
    dataset: moulds
    architecture: anomaly_segmenter
    input_size: [16, 16]
    options: {{width: 4}}
    holdout_share: 0.3
    training:
      cpu: {{epochs: 2, batch_size: 32, learning_rate: 0.005}}
    gate: {{metric: auroc, minimum: 0.5, max_drop: 0.5}}
"""


@pytest.fixture(scope="session")
def trained(services: LocalStack, tmp_path_factory) -> Iterator[str]:
    """A configuration in use, with both its models trained; returns the storage prefix.

    The images are so small and so easy that training takes seconds.
    """
    from ml import dataset, retrain

    bucket = f"s3://nightscore/trained-{uuid.uuid4().hex[:8]}"
    path = tmp_path_factory.mktemp("configuration") / "nightscore.yaml"
    path.write_text(CONFIGURATION.format(bucket=bucket))
    os.environ["NIGHTSCORE_CONFIG"] = str(path)
    folder = tmp_path_factory.mktemp("images")
    for name in ("shades", "moulds"):
        drawing.write_dataset(folder / name, name)
        dataset.import_(folder / name, name, storage=bucket)
        retrain.retrain(name)
    yield bucket
    del os.environ["NIGHTSCORE_CONFIG"]
