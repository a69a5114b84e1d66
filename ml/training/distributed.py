"""Training in several processes of one machine, each with a GPU or a share of the CPU's threads.

torchrun starts the processes (https://docs.pytorch.org/docs/stable/elastic/run.html), and each runs
`ml.training.worker`. They exchange everything by files in one folder: the job and the images go in;
epochs, and the result or an error, come out. Images are not copied: every process maps the cache
file of `ml.training.pixels` into its memory.
"""

import fcntl
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ml
from ml.config.schema import Model
from ml.errors import ConfigurationError, DataError, NightscoreError
from ml.models import Network
from ml.program.device import Device
from ml.settings import state_folder
from ml.training.data import Split, Splits
from ml.training.loop import Epoch

JOB, EPOCHS, ERROR, LOCK = "job.json", "epochs.jsonl", "error.json", "lock"
SPLITS = ("train", "holdout")
_RESULT, _LOG = "result.pt", "log.txt"
_LOG_TAIL_LINES = 12
_POLL_S = 0.1
_GRACE_S = 10.0


@dataclass(frozen=True)
class Job:
    """What a process needs to know besides the images.

    Attributes:
        model: the configuration of the model, as JSON.
        classes: the names of the classes.
        device: where to train.
        threads: the number of CPU threads of each process.
    """

    model: dict[str, Any]
    classes: list[str]
    device: Device
    threads: int


def write_result(network: Network, folder: Path) -> None:
    """Write a trained network's weights and buffers, and the gradients of its last step."""
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.save({"state": network.state_dict(), "gradients": gradients}, folder / _RESULT)


def _read_result(network: Network, folder: Path) -> None:
    result = torch.load(folder / _RESULT, map_location=network.device, weights_only=True)
    network.load_state_dict(result["state"])
    for name, parameter in network.named_parameters():
        parameter.grad = result["gradients"][name]


def pixels_file(split: str) -> str:
    """The name of the file with the images of a split."""
    return f"{split}-pixels.npy"


def labels_file(split: str) -> str:
    """The name of the file with the labels of a split."""
    return f"{split}-labels.npy"


def fit(
    network: Network,
    model: Model,
    splits: Splits,
    *,
    device: Device,
    processes: int,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Network:
    """Train a network in place, in several processes.

    However this process ends, the others end with it.

    Args:
        network: the network, on any device; each process also calls its `before_fit`.
        model: its configuration.
        splits: the images; those of `test` are not used.
        device: where to train; `cuda` needs a GPU for each process.
        processes: the number of processes.
        on_epoch: is called after each epoch.

    Returns:
        `network`, in eval mode, with the gradients of the last step.

    Raises:
        ConfigurationError: there are fewer GPUs than processes.
        DataError: see `ml.training.loop.fit`.
        NightscoreError: a process ended early; the message has the last lines of the log.
    """
    if device == "cuda" and torch.cuda.device_count() < processes:
        raise ConfigurationError(
            f"training.gpu.processes is {processes}; this machine has "
            f"{torch.cuda.device_count()} GPUs."
        )
    threads = max(1, torch.get_num_threads() // processes)
    job = Job(model.model_dump(mode="json"), list(splits.classes), device, threads)
    cache = state_folder() / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="training-") as name:
        folder = Path(name)
        (folder / JOB).write_text(json.dumps(asdict(job)))
        for split in SPLITS:
            _write_split(getattr(splits, split), folder, split)
        with _hold_lock(folder), _run_torchrun(folder, processes, threads) as torchrun:
            for epoch in _follow_epochs(torchrun, folder):
                on_epoch(epoch)
            if torchrun.returncode:
                raise _error(folder, processes)
        _read_result(network, folder)
    return network.eval()


def _write_split(split: Split, folder: Path, name: str) -> None:
    np.save(folder / labels_file(name), split.labels)
    if isinstance(split.pixels, np.memmap) and isinstance(split.pixels.base, mmap.mmap):
        # A hard link, so that the file stays when the cache evicts it.
        os.link(str(split.pixels.filename), folder / pixels_file(name))
    else:
        np.save(folder / pixels_file(name), split.pixels)


@contextmanager
def _hold_lock(folder: Path) -> Iterator[None]:
    """Hold a lock that the system releases when this process ends, however it ends."""
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _run_torchrun(folder: Path, processes: int, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", "-m", "ml.training.worker", str(folder),
    ]  # fmt: skip
    paths = [str(Path(ml.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(threads),
    }
    with (folder / _LOG).open("wb") as log:
        torchrun = subprocess.Popen(
            command,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield torchrun
    finally:
        _terminate(torchrun)


def _terminate(torchrun: subprocess.Popen[bytes]) -> None:
    """End torchrun, which ends its processes; any that remain end when the lock is released."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if torchrun.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(torchrun.pid, number)
        with suppress(subprocess.TimeoutExpired):
            torchrun.wait(_GRACE_S)


def _follow_epochs(torchrun: subprocess.Popen[bytes], folder: Path) -> Iterator[Epoch]:
    """Yield the epochs as they are reported, until torchrun has ended."""
    (folder / EPOCHS).touch()
    with (folder / EPOCHS).open() as file:
        incomplete_line, has_ended = "", False
        while not has_ended:
            has_ended = torchrun.poll() is not None
            *lines, incomplete_line = (incomplete_line + file.read()).split("\n")
            for line in lines:
                yield Epoch(**json.loads(line))
            if not has_ended:
                time.sleep(_POLL_S)


def _error(folder: Path, processes: int) -> NightscoreError:
    if (folder / ERROR).exists():
        return DataError(**json.loads((folder / ERROR).read_text()))
    lines = (folder / _LOG).read_text(errors="replace").splitlines()
    # Without the rules that torchrun draws around its report.
    lines = [line for line in lines if line.strip() and set(line.strip()) - {"=", "-"}]
    tail = "\n".join(lines[-_LOG_TAIL_LINES:])
    return NightscoreError(
        f"One of {processes} training processes ended early. Its last lines:\n{tail}",
        "If it was killed, there may be too little memory for so many: lower training.processes.",
    )
