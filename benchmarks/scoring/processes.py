"""What processes cost: CPU seconds, memory, and the share of time that a GPU is busy."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Any

import psutil

_SAMPLE_EVERY_S = 0.1
# Reading a process's memory map costs time of the cores that are measured.
_LARGEST_SHARE = 0.01


def tree(root: psutil.Process) -> list[psutil.Process]:
    """The process and all its living descendants."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(roots: Iterable[psutil.Process]) -> float:
    """CPU seconds so far of the process trees, those of ended descendants included.

    A process that ended is in its parent's `children_*` times, once the parent has waited for it.
    """
    total = 0.0
    for process in (found for root in roots for found in tree(root)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_mb(root: psutil.Process) -> float:
    """Memory of a process tree in MB; pages that processes share count once (PSS)."""
    return sum(_bytes(process) for process in tree(root)) / 1e6


def _bytes(process: psutil.Process) -> int:
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        return next(int(x.split()[1]) * 1024 for x in rollup.splitlines() if x.startswith("Pss:"))
    except (OSError, StopIteration):
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


class PeakMemory:
    """The largest memory of a process tree while the context is open, in `mb`."""

    def __init__(self, root: psutil.Process) -> None:
        self.root = root
        self.mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.mb = max(self.mb, memory_mb(self.root))

    def _watch(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            started = time.perf_counter()
            self.mb = max(self.mb, memory_mb(self.root))
            pause = max(_SAMPLE_EVERY_S, (time.perf_counter() - started) / _LARGEST_SHARE)


class GpuUse:
    """How a GPU was used while the context was open, by all processes of the machine.

    `busy` is the percent of the time in which it ran a kernel, the mean of NVML's samples (each of
    the last sixth of a second or so, so it says little of less than two seconds), `memory_mb` the
    most memory that was taken. Both are None on a CPU and where NVML does not answer.
    """

    def __init__(self, device: str) -> None:
        self.busy: float | None = None
        self.memory_mb: float | None = None
        self._handle = _gpu() if device == "cuda" else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._samples: list[float] = []

    def __enter__(self) -> "GpuUse":
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is None:
            return
        self._ended.set()
        self._thread.join()
        self.busy = mean(self._samples) if self._samples else None

    def _watch(self) -> None:
        import pynvml

        # What NVML says first is of the time before.
        while not self._ended.wait(_SAMPLE_EVERY_S):
            with contextlib.suppress(pynvml.NVMLError):
                self._samples.append(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
                used = pynvml.nvmlDeviceGetMemoryInfo(self._handle).used / 1e6
                self.memory_mb = max(self.memory_mb or 0.0, used)


def _gpu() -> Any:
    """NVML's handle of the GPU that torch takes by default; None where there is no NVML."""
    try:
        import pynvml
    except ImportError:
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdecimal() else 0)
    except pynvml.NVMLError:
        return None


def end(processes: Iterable[psutil.Process], wait_s: float) -> None:
    """Wait for processes to end, and kill those that do not."""
    _, alive = psutil.wait_procs(list(processes), timeout=wait_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)


def marked(name: str, value: str) -> list[psutil.Process]:
    """The living processes whose environment says NAME=VALUE."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
