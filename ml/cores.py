"""How many CPU cores this process may use: by its affinity, and by the quotas of its cgroups.

`os.cpu_count()` counts the cores of the machine. A container with a quota of 4 cores on a machine
of 96 would start 24 times as many threads as can run. Quotas are described in
https://docs.kernel.org/admin-guide/cgroup-v2.html (`cpu.max`) and
https://docs.kernel.org/scheduler/sched-bwc.html (version 1).
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

# Read by OpenMP, OpenBLAS and torch when they are loaded.
THREADS_VARIABLE = "OMP_NUM_THREADS"


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may keep busy, at least 1.

    A fraction of a core counts as a whole one: with 1.5 cores one thread would leave a third idle.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the smallest quota of this process's cgroups, in cores; None if there is none.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    quotas = [quota for folder in _cpu_cgroups(root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def limit_library_threads() -> None:
    """Let OpenMP, OpenBLAS and torch start no more threads than a quota lets run.

    They count the cores of the affinity, and know of no quota. A value that somebody has set is
    left alone. Call it before numpy and torch are imported.
    """
    if usable_cores() < len(os.sched_getaffinity(0)):
        os.environ.setdefault(THREADS_VARIABLE, str(usable_cores()))


def _cpu_cgroups(root: Path) -> Iterator[Path]:
    """Yield the folders whose quotas hold: of this process's cgroups and of those above them."""
    mounts = list(_cgroup_mounts(root))
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue  # a hierarchy of version 1 for something else
        for version, mount_root, mount_point in mounts:
            if version == (1 if controllers else 2):
                folder = _below(path, mount_root)
                for parent in (folder, *folder.parents):
                    yield root / mount_point.lstrip("/") / parent


def _below(path: str, mount_root: str) -> PurePosixPath:
    """Return a cgroup's path below the root of a mount.

    A container may see its path on the host, which does not lie below what is mounted; then what is
    mounted is its cgroup.
    """
    try:
        below = PurePosixPath(path).relative_to(mount_root)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in below.parts else below


def _cgroup_mounts(root: Path) -> Iterator[tuple[int, str, str]]:
    """Yield version, root and mount point of the mounted hierarchies that can have a quota."""
    for line in _read_text(root / "proc/self/mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        mount_root, mount_point = mount.split()[3:5]
        kind, _, options = filesystem.split(" ", 2)
        if kind == "cgroup2":
            yield 2, mount_root, mount_point
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield 1, mount_root, mount_point


def _quota(folder: Path) -> float | None:
    """Return the quota of a cgroup in cores; None if it has none."""
    # "max 100000" or "150000 100000"
    quota, _, period = _read_text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota = _read_text(folder / "cpu.cfs_quota_us").strip()
        period = _read_text(folder / "cpu.cfs_period_us").strip()
    with suppress(ValueError, ZeroDivisionError):
        cores = int(quota) / int(period)
        return cores if cores > 0 else None  # version 1 says -1 for none
    return None


def _read_text(path: Path) -> str:
    """Return a file of the kernel; empty if there is none, as on systems without cgroups."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
