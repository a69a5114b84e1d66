"""A process of a training in several: `python -m torch.distributed.run ... -m ml.training.worker`.

Started by `ml.training.distributed`, which describes the files that they exchange.
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
from ml.models import build
from ml.training import data, distributed, environment, loop, train
from ml.training.group import Processes


def main(folder: Path) -> None:
    """Train this process's share of the job that lies in `folder`."""
    _end_with_parent(folder)
    described = distributed.Job(**json.loads((folder / distributed.JOB).read_text()))
    try:
        _train(folder, described)
    except NightscoreError as error:
        if os.environ["RANK"] == "0":
            reason = {"message": error.message, "hint": error.hint}
            (folder / distributed.ERROR).write_text(json.dumps(reason))
        raise


def _train(folder: Path, described: distributed.Job) -> None:
    model = Model.model_validate(described.model)
    device = torch.device(described.place)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    with environment.fixed(described.place, described.threads):
        group = Processes(device)
        torch.manual_seed(model.seed)
        classes = tuple(described.classes)
        network = build(model.architecture, model.input_size, classes, model.options)
        fit, holdout = (_part(folder, name) for name in distributed.PARTS)

        def report(epoch: loop.Epoch) -> None:
            with (folder / distributed.EPOCHS).open("a") as file:
                file.write(json.dumps(asdict(epoch)) + "\n")

        pixels, labels = fit.tensors()
        network.before_fit(pixels, labels)
        first = group.rank == 0
        loop.fit(
            network,
            pixels,
            labels,
            train.parameters(model, described.place),
            device=device,
            seed=model.seed,
            group=group,
            validate=lambda trained: train.validate(trained, model, holdout) if first else {},
            on_epoch=report if first else lambda epoch: None,
        )
        if first:
            distributed.write_result(network, folder)
        group.close()


def _part(folder: Path, name: str) -> data.Part:
    # Copy on write, as torch wants arrays that may be written to; the processes share the pages.
    pixels = np.load(folder / distributed.pixels_of(name), mmap_mode="c")
    return data.Part(pixels, np.load(folder / distributed.labels_of(name)), ())


def _end_with_parent(folder: Path) -> None:
    """End this process at once when the one that wants its result has ended, however it did."""

    def wait() -> None:
        with (folder / distributed.ALIVE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # the parent holds it for as long as it lives
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
