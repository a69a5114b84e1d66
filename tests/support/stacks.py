"""Local stacks for the tests: on ports of their own, and with trained models from a template.

A template is made once per test session, by whichever process needs it first, and copied: a copy
with two trained models is up in seconds. `python -m tests.support.stacks FOLDER` makes one.
"""

import fcntl
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from ml.registry import client
from ml.settings import settings
from ml.stack.layout import DEFAULT_PORTS
from ml.stack.local import LocalStack
from ml.storage.object_store import object_store
from tests.support import synthetic_images

REPOSITORY = Path(__file__).parents[2]
# The same in every copy, since the tables name the images' URIs.
BUCKET = "s3://nightscore/trained"
MODELS = ("shades", "moulds")
# Below those that the kernel gives to connections, so that a port stays free until it is used.
_PORTS = range(20_000, 32_000)

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


def ports() -> dict[str, int]:
    """A free port for each server, which other stacks that start now hardly choose."""
    free = filter(_is_free, random.SystemRandom().sample(_PORTS, len(_PORTS)))
    return dict(zip(DEFAULT_PORTS, free, strict=False))


def _is_free(port: int) -> bool:
    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def forget_connections() -> None:
    """Let this process connect anew, to the stack that NIGHTSCORE_HOME names now."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING_")]:
        del os.environ[name]
    settings.cache_clear()
    object_store.cache_clear()
    client.mlflow_client.cache_clear()


def copy_of_trained(folder: Path, home: Path) -> None:
    """Make `home` the state folder of a stack that has both models trained; nothing is started.

    Args:
        folder: shared by the processes of a test session; the first makes the template there.
    """
    template = folder / "trained"
    with (folder / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            _make(folder / "unfinished", template)
    # With owners and modes: Postgres starts only in a folder of its own user.
    subprocess.run(["cp", "--archive", template / ".nightscore", home], check=True)


def _make(unfinished: Path, template: Path) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [sys.executable, "-m", "tests.support.stacks", str(unfinished)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    unfinished.rename(template)


def train(folder: Path, bucket: str) -> None:
    """Import the drawn data sets of both models and train them.

    It takes seconds, since the images are small and easy.
    """
    from ml.data import dataset
    from ml.retrain import steps as retrain

    for name in MODELS:
        synthetic_images.write_dataset(folder / name, name)
        dataset.import_(folder / name, name, storage=bucket)
        retrain.retrain(name)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    home, configuration = folder / ".nightscore", folder / "nightscore.yaml"
    configuration.write_text(CONFIGURATION.format(bucket=BUCKET))
    os.environ |= {"NIGHTSCORE_HOME": str(home), "NIGHTSCORE_CONFIG": str(configuration)}
    stack = LocalStack(home)
    try:
        stack.up(("postgres", "s3", "mlflow"), ports=ports())
        train(folder, BUCKET)
    finally:
        stack.down()
    for leftover in home.glob("conf/supervis*"):
        leftover.unlink()


if __name__ == "__main__":
    main()
