"""Memory on a GPU is bounded, and running out of it has a name."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ml.program.gpu_memory import VARIABLE
from tests.gpu.conftest import IS_REHEARSAL

_BATCHES = 2 if IS_REHEARSAL else 300
_LIMIT = 2**30
_TOO_LITTLE = 16 * 2**20  # less than torch takes at once for the weights of either model
_PATIENCE_S = 90
# Takes what is free, in ever smaller pieces, says so, and holds it.
_TAKE_ALL = """
import sys, torch
held, size = [], 2 ** 30
while size >= 2 ** 20:
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except RuntimeError:
        size //= 2
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def job(device, train_once, tmp_path_factory) -> Path:
    """Both models of `nightscore.yaml`, to be scored with at once."""
    trained = [train_once(name) for name in ("residual_network", "anomaly_segmenter")]
    programs = [{"path": str(one.path), "info": asdict(one.info)} for one in trained]
    path = tmp_path_factory.mktemp("programs") / "job.json"
    path.write_text(json.dumps({"device": device, "programs": programs, "batches": _BATCHES}))
    return path


@contextmanager
def _started(*arguments: str, limit: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    variables = {VARIABLE: f"{limit // 2**20}MiB"} if limit else {}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: "subprocess.Popen[str]") -> str:
    ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
    line = process.stdout.readline().strip() if ready else ""
    if not line:
        process.kill()
        raise AssertionError(f"no answer; it said {process.communicate()[1][-2000:]}")
    return line


def _scoring(job: Path, limit: int):
    return _started("-m", "tests.gpu.scoring_process", str(job), limit=limit)


def _go(process: "subprocess.Popen[str]") -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def _outcome(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What becomes of a process that scores alone; it may fail before it is ready."""
    answer = _line(process)
    if answer == "ready":
        _go(process)
        answer = _line(process)
    return json.loads(answer)


def test_two_processes_on_one_gpu_stay_within_the_limit_of_each(job, record_property):
    with _scoring(job, _LIMIT) as one, _scoring(job, _LIMIT) as other:
        for process in (one, other):
            assert _line(process) == "ready"
        for process in (one, other):
            _go(process)
        answers = [json.loads(_line(process)) for process in (one, other)]
    for answer in answers:
        assert "error" not in answer, answer
        assert answer["images"] > 0
        if not IS_REHEARSAL:
            record_property("MiB held at most", answer["reserved"] // 2**20)
            assert 0 < answer["reserved"] <= _LIMIT


def test_a_limit_that_is_too_small_fails_by_name(real_gpu, job, record_property):
    with _scoring(job, _TOO_LITTLE) as process:
        found = _outcome(process)
    record_property("message", found.get("message"))
    assert found["error"] == "GpuMemoryError"
    assert f"{VARIABLE} is 16MiB" in found["message"]


def test_a_gpu_that_others_have_filled_fails_by_name(real_gpu, job, record_property):
    with _started("-c", _TAKE_ALL) as greedy:
        assert _line(greedy) == "ready"
        with _scoring(job, _LIMIT) as process:
            found = _outcome(process)
    record_property("message", found.get("message"))
    assert found["error"] == "GpuMemoryError"
