"""Processes spread over the GPUs of a machine; how many there are is told to them."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml.program import device, gpu_claim

REPOSITORY = Path(__file__).parents[3]

# Claims, says what CUDA would show it, and lives until its standard input ends.
_CLAIM = """
import os, sys
from ml.program.gpu_claim import claim_gpu
index = int(sys.argv[2]) if len(sys.argv) > 2 else None
claimed = claim_gpu(int(sys.argv[1]), index)
assert claim_gpu(int(sys.argv[1])) == claimed
print(claimed, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""

Process = "subprocess.Popen[str]"
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    """Starts a process that claims a GPU; all of them share a state folder."""
    processes = []

    def start_one(*arguments: object, **variables: str) -> Process:
        environment = {k: v for k, v in os.environ.items() if k != gpu_claim.VARIABLE}
        process = subprocess.Popen(
            [sys.executable, "-c", _CLAIM, *map(str, arguments)],
            env=environment | {"NIGHTSCORE_HOME": str(tmp_path)} | variables,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def _claimed(process: Process) -> str:
    """The GPU that a process has claimed, which is the only one that CUDA shows it."""
    claimed, visible = process.stdout.readline().split()
    assert claimed == visible
    return claimed


@pytest.mark.parametrize(("processes", "gpus"), [(3, 3), (8, 4), (5, 2), (2, 4)])
def test_processes_spread_evenly(start, processes, gpus):
    at_once = [start(gpus) for _ in range(processes)]
    claims = Counter(map(_claimed, at_once))
    assert len(claims) == min(processes, gpus)
    assert max(claims.values()) - min(claims.values()) <= (processes % gpus > 0)


def test_the_claim_of_a_killed_process_is_free_again(start):
    first = start(2)
    assert _claimed(first) == "0"
    second = start(2)
    assert _claimed(second) == "1"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert _claimed(start(2)) == "0"


def test_the_gpus_that_a_process_may_see_are_respected(start):
    names = ["GPU-8f3c1a52", "MIG-41b36", "3"]
    processes = [start(3, CUDA_VISIBLE_DEVICES=", ".join(names)) for _ in names]
    assert sorted(map(_claimed, processes)) == sorted(names)
    # CUDA ends a list at the first GPU that it does not know: of these it sees one.
    one = start(1, CUDA_VISIBLE_DEVICES="3,7")
    assert one.stdout.readline().split() == ["None", "3,7"]


def test_the_same_gpu_has_the_same_claims_in_lists_that_differ(start):
    assert _claimed(start(2, CUDA_VISIBLE_DEVICES="1,2")) == "1"
    assert _claimed(start(2, CUDA_VISIBLE_DEVICES="2,1")) == "2"
    assert _claimed(start(2, CUDA_VISIBLE_DEVICES="1,3")) == "3"


def test_a_gpu_that_is_named_is_taken_and_others_keep_away_from_it(start):
    assert _claimed(start(3, 0)) == "0"
    assert _claimed(start(3, 0)) == "0"
    assert sorted(_claimed(start(3)) for _ in range(2)) == ["1", "2"]


def test_with_one_gpu_nothing_is_claimed(start, tmp_path):
    process = start(1)
    assert process.stdout.readline().split() == ["None", "None"]
    assert list(tmp_path.iterdir()) == []


def test_a_state_folder_that_cannot_be_written_leaves_the_first_gpu(start, tmp_path):
    (tmp_path / "file").write_text("")
    process = start(2, NIGHTSCORE_HOME=str(tmp_path / "file"))
    assert _claimed(process) == "0"


# What NIGHTSCORE_DEVICE asks for, on a machine whose GPUs are made up.
_SELECT = """
import json, os, sys
from ml.errors import ConfigurationError
from ml.program import device
device.count_gpus = lambda: int(sys.argv[1])
device.has_gpu = lambda: int(sys.argv[1]) > 0
all_gpus = len(sys.argv) > 2
try:
    selected = device.select_device(all_gpus=all_gpus), device.select_device()
    assert selected[0] == selected[1]
    print(selected[0], os.environ.get("CUDA_VISIBLE_DEVICES"))
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("arguments", "requested", "printed"),
    [
        ((0,), "", "cpu None"),
        ((4,), "cpu", "cpu None"),
        ((4,), "", "cuda 0"),
        ((4,), "cuda", "cuda 0"),
        ((4,), "cuda:2", "cuda 2"),
        ((1,), "cuda:0", "cuda None"),
        ((4, "all"), "", "cuda None"),
        ((2,), "cuda:2", "NIGHTSCORE_DEVICE is 'cuda:2', but this process sees 2 GPUs. The last one is cuda:1."),
        ((0,), "cuda:0", "NIGHTSCORE_DEVICE is 'cuda', but torch sees no usable GPU."),
        ((4,), "cuda:x", "NIGHTSCORE_DEVICE is 'cuda:x'; allowed: cpu, cuda, cuda:N."),
        ((4,), "cpu:0", "NIGHTSCORE_DEVICE is 'cpu:0'; allowed: cpu, cuda, cuda:N."),
    ],
)  # fmt: skip
def test_the_device_is_selected_as_requested(tmp_path, arguments, requested, printed):
    environment = {k: v for k, v in os.environ.items() if k != gpu_claim.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", _SELECT, *map(str, arguments)],
        env=environment | {"NIGHTSCORE_HOME": str(tmp_path), "NIGHTSCORE_DEVICE": requested},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == printed


def test_a_machine_without_a_driver_has_no_gpus_and_torch_is_not_asked(monkeypatch):
    monkeypatch.setattr(device, "_DRIVERS", ())
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("NIGHTSCORE_DEVICE", "")
    assert (device.count_gpus(), device.usable_gpus(), device.is_gpu_broken()) == (0, 0, False)
    assert device.select_device() == "cpu"
