"""The harness of the scoring benchmark: its passes, what it says of a GPU, what it draws."""

import argparse
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.errors import ContenderError
from benchmarks.models.profiles import MODELS, names, source
from benchmarks.scoring import report, runner, score, workloads
from benchmarks.scoring.contender import Job
from benchmarks.scoring.processes import GpuUse
from benchmarks.scoring.runner import Pass, run_passes
from benchmarks.scoring.score import Bench


def _contender(tmp_path, monkeypatch, body: str) -> list[str]:
    """A module that takes part with `body`, which defines `setups`."""
    (tmp_path / "taking_part.py").write_text(
        "from benchmarks.scoring.contender import main\n"
        + textwrap.dedent(body)
        + "\nmain(*setups)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return ["taking_part"]


def _job() -> Job:
    return Job(
        "spill", "m", "2026-01-01", 1, 1, "float32", "", "", "", "", "b", ("k",), "", "anomaly", ("normal",),
        (8, 8), 0.5, "", "", 2, "cpu",
    )  # fmt: skip


def test_one_process_makes_several_passes_and_each_prepares_itself(tmp_path, monkeypatch):
    arguments = _contender(
        tmp_path,
        monkeypatch,
        """
        done = []
        def first(job):
            done.append("prepared")
            return lambda: 7
        def second(job):
            assert done == ["prepared"], job
            return lambda: 9
        setups = (first, second)
        """,
    )
    path = tmp_path / "job.json"
    _job().write(path)
    passes = run_passes(arguments, path, [], "cpu", count=2)
    assert [one.images for one in passes] == [7, 9]
    assert all(one.seconds >= 0 and one.gpu_busy is None for one in passes)


def test_one_that_says_nothing_for_too_long_is_ended_and_named(tmp_path, monkeypatch):
    arguments = _contender(tmp_path, monkeypatch, "import time; time.sleep(600); setups = ()")
    path = tmp_path / "silent.json"
    _job().write(path)
    monkeypatch.setattr(runner, "_failure", lambda process, log: "silent does not answer")
    with pytest.raises(ContenderError, match="silent does not answer"):
        run_passes(arguments, path, [], "cpu", count=1, longest=0.5)


def test_a_contender_that_fails_is_named_or_ends_the_benchmark(tmp_path):
    bench = Bench(_job(), tmp_path, [], ["nightscore"], with_stages=False, keeps_going=True)
    with bench._failures_of("dataloader_copy"):
        raise ContenderError("it ended with 1")
    assert bench.document()["failed"] == {"dataloader_copy": "it ended with 1"}
    with pytest.raises(SystemExit), bench._failures_of("dataloader_copy"):
        raise SystemExit(143)  # as when the benchmark is ended from outside
    bench.keeps_going = False
    with pytest.raises(ContenderError), bench._failures_of("dataloader_copy"):
        raise ContenderError("it ended with 1")


def test_how_many_images_is_said_for_all_workloads_or_for_one():
    assert score._count("500") == ("", 500)
    assert score._count("spill=40") == ("spill", 40)
    with pytest.raises(argparse.ArgumentTypeError, match="no workload 'spil'"):
        score._count("spil=40")


def _nvml(monkeypatch, shares, used=3_000_000_000):
    samples = iter(shares)
    module = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=next(samples)),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=used),
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def _watched(device: str, seconds: float) -> GpuUse:
    with GpuUse(device) as gpu:
        time.sleep(seconds)
    return gpu


def test_how_busy_a_gpu_was_is_the_mean_of_what_nvml_says(monkeypatch):
    _nvml(monkeypatch, [50.0] * 1000)
    gpu = _watched("cuda", 0.35)
    assert gpu.busy == 50
    assert gpu.memory_mb == 3000


def test_without_a_gpu_or_nvml_nothing_is_said(monkeypatch):
    module = _nvml(monkeypatch, [50.0] * 10)
    assert _watched("cpu", 0).busy is None

    def refuse():
        raise RuntimeError("driver not loaded")

    module.nvmlInit = refuse
    assert _watched("cuda", 0).busy is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert _watched("cuda", 0).busy is None


def test_rows_and_stages_say_how_a_gpu_was_used():
    passes = [Pass(1000, 1.0, 1.0, 0.0, 10.0, busy, memory) for busy, memory in ((40, 1), (60, 9))]
    for found in (report.row("nightscore", passes), report.stage(passes)):
        assert (found["gpu_busy_percent"], found["gpu_memory_mb"]) == (50, 9)
    plain = [Pass(1000, 1.0, 1.0, 0.0, 10.0, None)]
    assert not {"gpu_busy_percent", "gpu_memory_mb"} & report.row("nightscore", plain).keys()


def test_images_are_drawn_the_same_however_many_and_each_another():
    few, many = workloads.draw_images("spill", 3), workloads.draw_images("spill", 20)
    assert many[:3] == few
    assert len(set(many)) == 20


def test_each_model_is_trained_once_before_any_is_trained_again(tmp_path):
    assert names(2) == [f"{MODELS[0]}/0", f"{MODELS[1]}/0", f"{MODELS[0]}/1", f"{MODELS[1]}/1"]
    (tmp_path / "spill.tar.xz").touch()
    assert source("spill", tmp_path, tmp_path) == (tmp_path / "spill.tar.xz", False)


def test_a_data_set_that_is_not_there_is_replaced_by_samples_that_are_named(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("ml.data.samples.write", drawn.append)
    assert source("spill", None, tmp_path) == (tmp_path / "spill", True)
    assert drawn == [tmp_path]


def test_precisions_are_compared_when_they_are_asked_for():
    assert not {"nightscore_tf32", "nightscore_bfloat16"} & set(score._contenders(None))
    asked = ["nightscore", "nightscore_tf32"]
    assert score._contenders(asked) == asked


@pytest.mark.slow
def test_the_classes_of_resnet_are_as_clear_as_after_a_training():
    workload = workloads.WORKLOADS["imagenet"]
    network = workloads.network(workload)
    with torch.inference_mode():
        best_two = network(workloads._sample_batch(workload)).topk(2).values
    margins = best_two[:, 0] - best_two[:, 1]
    assert (margins > 0.2).float().mean() > 0.75  # twice the tolerance of bfloat16
