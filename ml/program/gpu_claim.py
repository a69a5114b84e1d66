"""A process's claim of one GPU, so that processes spread over the GPUs of a machine.

CUDA takes the first GPU that it sees. A process therefore claims the GPU with the fewest claims and
hides the others from CUDA. A claim is a locked file, and the kernel releases the lock when the
process ends, also after `kill -9`.
"""

import fcntl
import logging
import os
import re
import socket
import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple, TextIO

from ml.settings import state_folder

log = logging.getLogger(__name__)

# The GPUs that CUDA shows a process, by index or UUID. CUDA reads it once, when it is initialised.
VARIABLE = "CUDA_VISIBLE_DEVICES"


class _Claim(NamedTuple):
    """The GPU, and its locked file; None and None if the process uses all that it sees."""

    gpu: str | None
    file: TextIO | None


_mutex = threading.Lock()
_claim: _Claim | None = None


def claim_gpu(gpus: int, index: int | None = None) -> str | None:
    """Claim a GPU and hide the others from CUDA, which must not be initialised yet.

    The first call in a process decides, or `use_all_gpus`; later calls return the same GPU. A
    process that is forked or started afterwards sees that GPU only.

    Args:
        gpus: the number of GPUs that this process sees. With one there is nothing to claim.
        index: which of them to claim; None for the one with the fewest claims.

    Returns:
        The claimed GPU as `CUDA_VISIBLE_DEVICES` names it; None if none is claimed.
    """
    global _claim
    with _mutex:
        if _claim is None:
            names = _visible_gpus(gpus)
            _claim = _make_claim(names if index is None else names[index : index + 1], gpus)
        return _claim.gpu


def use_all_gpus() -> None:
    """Let this process use all GPUs that it sees, unless it has claimed one before."""
    global _claim
    with _mutex:
        _claim = _claim or _Claim(None, None)


def _visible_gpus(gpus: int) -> list[str]:
    """Return the names of the GPUs that this process sees."""
    names = os.environ.get(VARIABLE)
    if names is None:
        return [str(index) for index in range(gpus)]
    return [name.strip() for name in names.split(",")][:gpus]


def _make_claim(names: Sequence[str], gpus: int) -> _Claim:
    if gpus <= 1 or not names:
        return _Claim(None, None)
    try:
        claim = _lock_first_free(names)
    except OSError as error:
        # Processes that cannot be spread still score, on the first GPU.
        log.warning("No GPU is claimed, so the first is used: %s", error)
        claim = _Claim(names[0], None)
    assert claim.gpu is not None
    os.environ[VARIABLE] = claim.gpu
    log.info("This process uses GPU %s", claim.gpu)
    return claim


def _lock_first_free(names: Sequence[str]) -> _Claim:
    """Lock the first free file: the first slot of each GPU, then the second of each, and so on."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    for slot in count():
        for name in names:
            file = (folder / f"gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}-{slot}").open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
            except OSError:
                file.close()
                raise
            else:
                return _Claim(name, file)
    raise AssertionError("unreachable: there is always a further slot")


def _folder() -> Path:
    """Return the folder of the locked files: one for each machine that shares the state folder."""
    return state_folder() / "gpu-claims" / socket.gethostname()
