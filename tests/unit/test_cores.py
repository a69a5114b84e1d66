"""CPU cores are counted as a container sees them: by affinity, and by the quotas of cgroups."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from ml import cores

REPOSITORY = Path(__file__).parents[2]
CPU_OF_VERSION_1 = Path("/sys/fs/cgroup/cpu")
UNIFIED = Path("/sys/fs/cgroup")

V2_MOUNT = "35 24 0:30 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n"
V1_MOUNT = "33 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 96 cores, of which the test writes the kernel's files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)))

    def write(mounts: str, cgroup: str, files: dict[str, str]) -> Path:
        texts = {"proc/self/mountinfo": mounts, "proc/self/cgroup": cgroup, **files}
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("cpu_max", "count"),
    [
        ("max 100000", 96),
        ("400000 100000", 4),
        ("50000 100000", 1),
        ("150000 100000", 2),
        ("20000 10000", 2),
        ("9900000 100000", 96),
    ],
)
def test_a_container_of_version_2_counts_its_quota_rounded_up(machine, cpu_max, count):
    root = machine(V2_MOUNT.format(root="/"), "0::/\n", {"sys/fs/cgroup/cpu.max": f"{cpu_max}\n"})
    assert cores.usable_cores(root) == count


def test_the_smallest_quota_of_nested_cgroups_holds(machine):
    files = {
        "sys/fs/cgroup/kubepods/cpu.max": "800000 100000\n",
        "sys/fs/cgroup/kubepods/pod1/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/kubepods/pod1/main/cpu.max": "max 100000\n",
        "sys/fs/cgroup/kubepods/pod2/cpu.max": "100000 100000\n",  # of another pod
    }
    root = machine(V2_MOUNT.format(root="/"), "0::/kubepods/pod1/main\n", files)
    assert cores.usable_cores(root) == 3


@pytest.mark.parametrize(
    ("mount_root", "path"),
    [
        ("/", "/"),
        ("/docker/abc", "/docker/abc"),  # the host's path, seen from within
        ("/docker/abc", "/elsewhere"),
        ("/", "/../sibling"),
    ],
)
def test_a_container_finds_its_quota_where_its_cgroup_is_mounted(machine, mount_root, path):
    files = {"sys/fs/cgroup/cpu.max": "250000 100000\n"}
    root = machine(V2_MOUNT.format(root=mount_root), f"0::{path}\n", files)
    assert cores.usable_cores(root) == 3


def test_version_1_is_read_too_and_minus_one_is_no_quota(machine):
    cpu = "sys/fs/cgroup/cpu,cpuacct"
    files = {
        f"{cpu}/cpu.cfs_quota_us": "-1\n",
        f"{cpu}/cpu.cfs_period_us": "100000\n",
        f"{cpu}/kubepods/cpu.cfs_quota_us": "200000\n",
        f"{cpu}/kubepods/cpu.cfs_period_us": "100000\n",
        # A hierarchy that limits something else.
        "sys/fs/cgroup/memory/kubepods/cpu.max": "100000 100000\n",
    }
    lines = "7:memory:/kubepods\n4:cpu,cpuacct:/kubepods\n0::/\n"
    root = machine(V1_MOUNT.format(root="/"), lines, files)
    assert cores.usable_cores(root) == 2
    (root / cpu / "kubepods/cpu.cfs_quota_us").write_text("-1\n")
    assert cores.usable_cores(root) == 96


def test_without_cgroups_the_affinity_counts(machine):
    assert cores.usable_cores(machine("", "", {})) == 96


COUNTS = """
import json, os, sys
from pathlib import Path
cgroup = Path(sys.argv[1])
(cgroup / "cgroup.procs").write_text(str(os.getpid()))
from ml import cores
cores.limit_library_threads()
from ml.scoring.engine import thread_count
from ml.program.runtime import inference_options
import cv2, torch
print(json.dumps({
    "cores": cores.usable_cores(),
    "scoring": thread_count("cpu"),
    "openvino": inference_options("float32")["INFERENCE_NUM_THREADS"],
    "torch": torch.get_num_threads(),
    "opencv": cv2.getNumThreads(),
}))
"""


@pytest.fixture
def real_cgroup():
    """A cgroup with half a core, of the version that this machine mounts."""
    first = CPU_OF_VERSION_1 / "cpu.cfs_period_us"
    parent = CPU_OF_VERSION_1 if first.exists() else UNIFIED
    folder = parent / f"nightscore-test-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        if first.exists():
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text("50000")
        elif (folder / "cpu.max").exists():
            (folder / "cpu.max").write_text("50000 100000")
        else:
            pytest.skip("the controller cpu is not available to a new cgroup here")
        yield folder
    except OSError as error:
        pytest.skip(f"no quota can be set here: {error}")
    finally:
        folder.rmdir()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared out")
def test_every_pool_of_threads_follows_the_quota_of_a_real_cgroup(real_cgroup):
    environment = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, str(real_cgroup)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts == {"cores": 1, "scoring": 2, "openvino": 1, "torch": 1, "opencv": 1}
