"""One of several training processes: `python -m torch.distributed.run -m ml.training.worker`.

`ml.training.distributed` starts it, and describes the files that they exchange.
"""

import fcntl
import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ml.config.schema import Model
from ml.errors import NightscoreError
from ml.models import Network
from ml.training import distributed, environment, loop
from ml.training.data import Split
from ml.training.group import ProcessGroup
from ml.training.trainer import prepare_network, training_parameters
from ml.training.validation import Validation


def main(folder: Path) -> None:
    """Do this process's part of the job in `folder`."""
    _end_with_parent(folder)
    job = distributed.Job(**json.loads((folder / distributed.JOB).read_text()))
    try:
        _train(folder, job)
    except NightscoreError as error:
        if os.environ["RANK"] == "0":
            content = {"message": error.message, "hint": error.hint}
            (folder / distributed.ERROR).write_text(json.dumps(content))
        raise


def _train(folder: Path, job: distributed.Job) -> None:
    model = Model.model_validate(job.model)
    device = torch.device(job.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    with environment.deterministic(job.device, job.threads):
        group = ProcessGroup(device)
        train, holdout = (_read_split(folder, name) for name in distributed.SPLITS)
        network = prepare_network(model, tuple(job.classes), train, device)

        def report(epoch: loop.Epoch) -> None:
            with (folder / distributed.EPOCHS).open("a") as file:
                file.write(json.dumps(asdict(epoch)) + "\n")

        def measure_nothing(network: Network) -> dict[str, float]:
            return {}

        is_first = group.rank == 0
        loop.fit(
            network,
            *train.tensors(),
            training_parameters(model, job.device),
            device=device,
            seed=model.seed,
            group=group,
            validate=Validation(model, holdout, device) if is_first else measure_nothing,
            on_epoch=report if is_first else lambda epoch: None,
        )
        if is_first:
            distributed.write_result(network, folder)
        group.close()


def _read_split(folder: Path, name: str) -> Split:
    # Copy on write, as torch wants arrays that can be written to; the processes share the pages.
    pixels = np.load(folder / distributed.pixels_file(name), mmap_mode="c")
    return Split(pixels, np.load(folder / distributed.labels_file(name)), ())


def _end_with_parent(folder: Path) -> None:
    """End this process at once when its parent has ended, however that ended."""

    def wait() -> None:
        with (folder / distributed.LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # the parent holds the lock as long as it lives
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
