"""Training in several processes of one machine, each with a GPU or a share of the CPU's threads.

torchrun starts them (https://docs.pytorch.org/docs/stable/elastic/run.html); `ml.training.worker`
is what runs in each. Everything is exchanged by files of one folder: the job and the images go in,
epochs, the result or an error come out. Images are not copied: they lie in the cache file of
`ml.training.pixels`, which every process maps.
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
from ml.training import data
from ml.training.loop import Epoch

JOB, EPOCHS, ERROR, ALIVE = "job.json", "epochs.jsonl", "error.json", "alive"
PARTS = ("fit", "holdout")
_RESULT, _LOG = "result.pt", "log.txt"
_LAST_LINES = 12
_POLL_S = 0.1
_GRACE_S = 10.0


@dataclass(frozen=True)
class Job:
    """What a process needs to know besides the images; `threads` are those of each process."""

    model: dict[str, Any]
    classes: list[str]
    place: Device
    threads: int


def write_result(network: Network, folder: Path) -> None:
    """Write a trained network's weights and buffers, and the gradients of its last step."""
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.save({"state": network.state_dict(), "gradients": gradients}, folder / _RESULT)


def _read_result(network: Network, folder: Path) -> None:
    result = torch.load(folder / _RESULT, weights_only=True)
    network.load_state_dict(result["state"])
    for name, parameter in network.named_parameters():
        parameter.grad = result["gradients"][name]


def pixels_of(part: str) -> str:
    """The name of the file with a part's images."""
    return f"{part}-pixels.npy"


def labels_of(part: str) -> str:
    """The name of the file with a part's labels."""
    return f"{part}-labels.npy"


def fit(
    network: Network,
    model: Model,
    parts: data.Parts,
    *,
    place: Device,
    processes: int,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Network:
    """`ml.training.loop.fit` in several processes: trains `network` in place and returns it,
    with its last step's gradients.

    However this process ends, the others end with it.

    Raises:
        ConfigurationError: there are fewer GPUs than processes.
        DataError: see `ml.training.loop.fit`.
        NightscoreError: a process ended early; the message has its last lines.
    """
    if place == "cuda" and torch.cuda.device_count() < processes:
        raise ConfigurationError(
            f"training.gpu.processes is {processes}; this machine has "
            f"{torch.cuda.device_count()} GPUs."
        )
    threads = max(1, torch.get_num_threads() // processes)
    job = Job(model.model_dump(mode="json"), list(parts.classes), place, threads)
    cache = state_folder() / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="training-") as name:
        folder = Path(name)
        (folder / JOB).write_text(json.dumps(asdict(job)))
        for part in PARTS:
            _hand_over(getattr(parts, part), folder, part)
        with _alive(folder), _started(folder, processes, threads) as torchrun:
            for epoch in _epochs(torchrun, folder):
                on_epoch(epoch)
            if torchrun.returncode:
                raise _failure(folder, processes)
        _read_result(network, folder)
    return network.eval()


def _hand_over(part: data.Part, folder: Path, name: str) -> None:
    np.save(folder / labels_of(name), part.labels)
    if isinstance(part.pixels, np.memmap) and isinstance(part.pixels.base, mmap.mmap):
        # A second name, which stays when the cache forgets the file.
        os.link(str(part.pixels.filename), folder / pixels_of(name))
    else:
        np.save(folder / pixels_of(name), part.pixels)


@contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """Hold a lock that the system gives free when this process ends, however it does."""
    with (folder / ALIVE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _started(folder: Path, processes: int, threads: int) -> Iterator[subprocess.Popen[bytes]]:
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
        _stop(torchrun)


def _stop(torchrun: subprocess.Popen[bytes]) -> None:
    """End torchrun, which ends its processes; those it leaves end with the lock (`_alive`)."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if torchrun.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(torchrun.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            torchrun.wait(_GRACE_S)


def _epochs(torchrun: subprocess.Popen[bytes], folder: Path) -> Iterator[Epoch]:
    """The epochs as they are reported, until torchrun has ended."""
    (folder / EPOCHS).touch()
    with (folder / EPOCHS).open() as file:
        rest, ended = "", False
        while not ended:
            ended = torchrun.poll() is not None
            *lines, rest = (rest + file.read()).split("\n")
            for line in lines:
                yield Epoch(**json.loads(line))
            if not ended:
                time.sleep(_POLL_S)


def _failure(folder: Path, processes: int) -> NightscoreError:
    if (folder / ERROR).exists():
        return DataError(**json.loads((folder / ERROR).read_text()))
    lines = (folder / _LOG).read_text(errors="replace").splitlines()
    shown = "\n".join(line for line in lines if line.strip() and set(line.strip()) - {"=", "-"})
    last = "\n".join(shown.splitlines()[-_LAST_LINES:])
    return NightscoreError(
        f"One of {processes} training processes ended early. Its last lines:\n{last}",
        "If it was killed, there may be too little memory for so many: lower training.processes.",
    )
