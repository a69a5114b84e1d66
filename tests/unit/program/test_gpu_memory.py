"""The limit of a GPU's memory, and running out of it, without a GPU: torch's part is played."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ml.errors import ConfigurationError, DataError, GpuMemoryError, ServiceError
from ml.program import gpu_memory
from ml.program.gpu_memory import VARIABLE, limit, memory_errors
from ml.program.info import CLASSIFICATION, ProgramInfo
from ml.program.program import Program

REPOSITORY = Path(__file__).parents[3]
GIB = 2**30


@pytest.mark.parametrize(
    ("wish", "bytes_"),
    [
        ("", None),
        ("0.5", 40 * GIB),
        ("1", 80 * GIB),
        ("8GiB", 8 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("512MiB", GIB // 2),
        ("200GiB", 80 * GIB),
    ],
)
def test_a_limit_is_a_share_or_an_amount(wish, bytes_, monkeypatch):
    monkeypatch.setenv(VARIABLE, wish)
    assert limit(80 * GIB) == bytes_


@pytest.mark.parametrize("wish", ["0", "1.5", "8", "half", "8GB", "-1GiB", "0MiB", "nan", "1e3MiB"])
def test_what_is_no_limit_is_refused(wish, monkeypatch):
    monkeypatch.setenv(VARIABLE, wish)
    with pytest.raises(ConfigurationError, match="NIGHTSCORE_GPU_MEMORY"):
        limit(80 * GIB)


@pytest.mark.parametrize(
    ("wish", "bytes_"),
    [
        ("", 12 * GIB),  # what is free, and what torch's allocator holds in reserve
        ("1", 12 * GIB),
        ("8GiB", 5 * GIB),  # of which this process uses three
        ("2GiB", 0),
    ],
)
def test_available_is_what_is_free_within_the_limit(wish, bytes_, monkeypatch):
    monkeypatch.setenv(VARIABLE, wish)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3 * GIB)
    assert gpu_memory.available() == bytes_


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    torch.cuda.DeferredCudaCallError(
        "CUDA call failed lazily with error: CUDA error: out of memory"
    ),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:40])
def test_a_full_gpu_has_a_name_and_a_way_out(error, monkeypatch):
    monkeypatch.setenv(VARIABLE, "8GiB")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (300 * 2**20, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5 * GIB)
    with pytest.raises(GpuMemoryError) as caught, memory_errors("cuda"):
        raise error
    detail = (
        "this process holds 5120 MiB, 300 of 81920 MiB are free; NIGHTSCORE_GPU_MEMORY is 8GiB."
    )
    assert detail in str(caught.value)
    assert caught.value.hint
    assert isinstance(caught.value, ServiceError)  # so that a shard is tried again


def test_a_gpu_that_no_longer_answers_is_named_all_the_same(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)

    def refuse():
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    with (
        pytest.raises(GpuMemoryError, match=r"^There is too little GPU memory\. Raise"),
        memory_errors("cuda"),
    ):
        refuse()


@pytest.mark.parametrize(
    ("device", "error"),
    [("cuda", RuntimeError("CUDA error: an illegal memory access")), ("cpu", FULL[0])],
)
def test_other_errors_stay_what_they_are(device, error):
    with pytest.raises(type(error)) as caught, memory_errors(device):
        raise error
    assert caught.value is error


def _full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_program_is_not_blamed_for_a_full_gpu():
    info = ProgramInfo("m", 1, CLASSIFICATION, ("a", "b"), (8, 8), None, "")

    def run_out_of_memory(pixels, map_threshold):
        with memory_errors("cuda"):
            _full()

    with pytest.raises(GpuMemoryError):
        Program(run_out_of_memory, info, "cuda")._smoke_test()

    def broken(pixels, map_threshold):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(DataError, match="shapes do not fit"):
        Program(broken, info, "cuda")._smoke_test()


def test_no_limit_asks_nothing_of_the_gpu(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", _full)
    assert gpu_memory.apply_limit() is None


def test_a_limit_is_given_to_torch_as_a_share(monkeypatch):
    shares = []
    monkeypatch.setenv(VARIABLE, "20GiB")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = type("Properties", (), {"total_memory": 80 * GIB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    assert gpu_memory.apply_limit() == 20 * GIB
    assert shares == [0.25]


_WITHOUT = """
import sys
for name in ("mlflow", "airflow", "openvino"):
    sys.modules[name] = None
import ml.scoring.engine, ml.scoring.shard, ml.training.train, ml.training.worker
"""


def test_the_engine_and_training_are_imported_without_mlflow_airflow_and_openvino():
    done = subprocess.run([sys.executable, "-c", _WITHOUT], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# torch's part on a GPU is played by the CPU: the programs stay where they are.
_ON_A_GPU = """
import sys
for name in ("mlflow", "airflow", "openvino"):
    sys.modules[name] = None
from pathlib import Path
import numpy as np, torch, torch.export.passes
torch.export.passes.move_to_device_pass = lambda exported, device: exported
from ml.program import selection
from ml.program.gpu import StreamPool
from tests.support.deferred_gpu import DeferredGpu
selection.cuda_streams = lambda: StreamPool(DeferredGpu())
from ml.program.program import Program
from ml.program.info import ProgramInfo, sha256
path = Path(sys.argv[1])
info = ProgramInfo("m", 1, "anomaly", ("normal", "anomalous"), (16, 16), 0.5, sha256(path))
program = Program.load(path, info, "cuda")
print(program.predict(np.full((2, 3, 16, 16), 51, np.uint8)).scores.tolist())
"""


class _Shade(torch.nn.Module):
    def forward(self, pixels):
        return pixels.float().mean((1, 2, 3)) / 255, pixels[:, 0, ::2, ::2].float() / 255


@pytest.mark.slow
def test_on_a_gpu_a_program_is_loaded_and_scores_without_openvino(tmp_path):
    from ml.program.program_file import export

    export(_Shade(), tmp_path / "model.pt2", (16, 16))
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_GPU, tmp_path / "model.pt2"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0.20000000298023224, 0.20000000298023224]"
