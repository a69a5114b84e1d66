"""The quick way to run a program and the plain one: the same decisions, nearly the same numbers."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.export.passes import move_to_device_pass

from ml import runtime, samples
from ml.config import Training
from ml.errors import ConfigurationError
from ml.models import build
from ml.program import ANOMALY, CLASSIFICATION, Program, ProgramInfo, export, sha256
from ml.runtime import TOLERANCE, OpenVinoRuntime, TorchRuntime, convert, is_converted
from ml.training.loop import fit

TASKS = {
    "residual_network": CLASSIFICATION,
    "anomaly_segmenter": ANOMALY,
    "attention_autoencoder": ANOMALY,
}
SIZES = {CLASSIFICATION: (32, 32), ANOMALY: (32, 56)}


def _moulds(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic moulds, uint8 (N, 3, 32, 56), a fifth of them with a spill, and their labels."""
    random = np.random.default_rng(3)
    labels = np.arange(count) % 5 == 0
    images = [samples.mould(random, kind="spill" if bad else "filled") for bad in labels]
    pixels = [np.asarray(image.resize((56, 32))).transpose(2, 0, 1) for image in images]
    return np.stack(pixels), labels.astype(np.int64)


def _shapes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Blurred blots in three colours that mix, so that some are hard to tell; uint8 (N, 3, 32, 32),
    and their labels."""
    random = np.random.default_rng(4)
    labels = np.arange(count) % 3
    pixels = random.integers(40, 180, (count, 3, 32, 32))
    pixels[np.arange(count), labels] += random.integers(0, 12, (count, 32, 32))
    return pixels.astype(np.uint8), labels.astype(np.int64)


@pytest.fixture(scope="module", params=TASKS)
def trained(request, tmp_path_factory):
    """A network trained for seconds, its exported program, and images it has not seen."""
    name, task = request.param, TASKS[request.param]
    if task == CLASSIFICATION:
        (pixels, labels), classes = _shapes(1500), ("a", "b", "c")
    else:
        (pixels, labels), classes = _moulds(900), ("normal", "anomalous")
    torch.manual_seed(0)
    network = build(name, SIZES[task], classes, {"width": 8})
    parameters = Training(epochs=2, batch_size=64, learning_rate=0.02, weight_decay=1e-4)
    half = len(pixels) // 2
    learned = torch.from_numpy(pixels[:half]), torch.from_numpy(labels[:half])
    fit(network, *learned, parameters, device=torch.device("cpu"), seed=0)
    network.finish(*learned)
    path = tmp_path_factory.mktemp(name) / "model.pt2"
    export(network, path, SIZES[task])
    with torch.inference_mode():
        outputs = network(torch.from_numpy(pixels[half:]))
    plain = [part.numpy() for part in (outputs if isinstance(outputs, tuple) else (outputs,))]
    # In the middle of the scores, where most images are close to it.
    threshold = float(np.median(plain[0])) if task == ANOMALY else None
    info = ProgramInfo("m", 1, task, classes, SIZES[task], threshold, sha256(path))
    return path, info, pixels[half:], plain


def _outputs(program: Program, pixels: np.ndarray) -> list[np.ndarray]:
    found = program.predict(pixels)
    if program.info.task == CLASSIFICATION:
        return [found.probabilities]
    return [found.scores, found.heatmaps]


def _decisions(values: np.ndarray, info: ProgramInfo) -> np.ndarray:
    return values.argmax(1) if info.task == CLASSIFICATION else values >= info.threshold


@pytest.mark.parametrize("precision", ["float32", "bfloat16", ""])
def test_the_quick_path_agrees_with_plain_torch_and_decides_the_same(
    trained, precision, monkeypatch
):
    path, info, pixels, plain = trained
    monkeypatch.setenv("NIGHTSCORE_PRECISION", precision)
    program = Program.load(path, info, "cpu")
    assert isinstance(program.runtime, OpenVinoRuntime)
    tolerance = TOLERANCE[program.runtime.precision]
    for found, expected in zip(_outputs(program, pixels), plain, strict=True):
        assert np.abs(found - expected).max() <= tolerance
    found = _outputs(program, pixels)[0]
    # Float32 rounds in another order here than there: 1e-6 of the threshold is out of reach.
    if info.task == CLASSIFICATION:
        best = np.partition(plain[0], -2, axis=1)
        clear = best[:, -1] - best[:, -2] > 1e-6
    else:
        clear = np.abs(plain[0] - info.threshold) > 1e-6
    assert clear.mean() > 0.98
    same = _decisions(found, info) == _decisions(plain[0], info)
    assert same[clear].all()


def test_the_batch_and_the_threads_change_nothing_that_is_stored(trained, monkeypatch):
    monkeypatch.setenv("NIGHTSCORE_PRECISION", "float32")
    path, info, pixels, _ = trained
    program = Program.load(path, info, "cpu")
    whole = _outputs(program, pixels[:96])[0]
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: _outputs(program, pixels[i : i + 3])[0], range(0, 96, 3)))
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_channels_last_pixels_are_the_same_pixels(trained):
    path, info, pixels, _ = trained
    program = Program.load(path, info, "cpu")
    last = np.ascontiguousarray(pixels[:8].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(_outputs(program, last)[0], _outputs(program, pixels[:8])[0])


def test_a_second_load_needs_no_torch_and_no_telemetry(trained):
    path, info, _, _ = trained
    Program.load(path, info, "cpu")
    assert sys.modules["openvino_telemetry"] is None
    code = f"""
import json, sys
from pathlib import Path
from ml.program import Program, ProgramInfo
info = json.loads({json.dumps(json.dumps(vars(info)))})
info = ProgramInfo(**info | {{"input_size": tuple(info["input_size"]), "classes": tuple(info["classes"])}})
Program.load(Path({str(path)!r}), info, "cpu")
print(*sorted(name for name in ("torch", "openvino_telemetry", "mlflow") if sys.modules.get(name)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == []


def test_a_damaged_or_foreign_conversion_is_made_again(trained):
    path, info, pixels, _ = trained
    before = _outputs(Program.load(path, info, "cpu"), pixels[:4])[0]
    folder = path.with_suffix(".openvino")
    assert is_converted(folder, info.sha256)
    assert not is_converted(folder, "0" * 64)
    weights = folder / "graph.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)
    assert not is_converted(folder, info.sha256)
    assert np.array_equal(_outputs(Program.load(path, info, "cpu"), pixels[:4])[0], before)
    assert is_converted(folder, info.sha256)
    assert [entry.name for entry in path.parent.iterdir() if "partial" in entry.name] == []


class _Exotic(torch.nn.Module):
    """An operation that OpenVINO does not know."""

    def forward(self, pixels):
        means = pixels.float().mean((2, 3)) / 255
        return torch.special.i0(means).softmax(1)


def test_what_openvino_does_not_know_is_left_to_torch(tmp_path, caplog):
    path = tmp_path / "model.pt2"
    export(_Exotic(), path, (16, 16))
    info = ProgramInfo("m", 1, CLASSIFICATION, ("a", "b", "c"), (16, 16), None, sha256(path))
    program = Program.load(path, info, "cpu")
    assert isinstance(program.runtime, TorchRuntime)
    assert "OpenVINO cannot run m/1" in caplog.text
    pixels, _ = _shapes(4)
    expected = _Exotic()(torch.from_numpy(pixels[:, :, :16, :16].copy())).numpy()
    np.testing.assert_allclose(program.predict(pixels[:, :, :16, :16]).probabilities, expected)


class _Means(torch.nn.Module):
    """Shares of the colours, or of their inverse."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, pixels):
        return (self.sign * pixels.float().mean((2, 3)) / 50).softmax(1)


def test_a_conversion_that_gives_other_outputs_than_torch_is_refused(tmp_path):
    programs = []
    for sign in (1.0, -1.0):
        path = tmp_path / f"{sign}.pt2"
        export(_Means(sign), path, (16, 16))
        programs.append(torch.export.load(path))
    folder = tmp_path / "made"
    convert(programs[0], folder, "0" * 64, (16, 16))
    made = OpenVinoRuntime(folder, "float32", (16, 16))
    runtime.compare(made, TorchRuntime(programs[0], "cpu"), (16, 16))
    with pytest.raises(ValueError, match="its outputs differ from those of torch by"):
        runtime.compare(made, TorchRuntime(programs[1], "cpu"), (16, 16))


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "model.pt2"
    export(_Exotic(), path, (16, 16))
    with pytest.raises(Exception, match="i0"):
        convert(torch.export.load(path), tmp_path / "made", "0" * 64, (16, 16))
    assert list(tmp_path.iterdir()) == [path]


def test_a_program_moves_to_another_device_with_everything_in_it(trained):
    """As for a GPU: a constant left behind would be on another device than the pixels. `meta`
    computes shapes only, and is there without a GPU."""
    path, info, _, plain = trained
    moved = move_to_device_pass(torch.export.load(path), "meta").module()
    outputs = moved(torch.zeros(5, 3, *info.input_size, dtype=torch.uint8, device="meta"))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [output.device.type for output in outputs] == ["meta"] * len(plain)
    assert [output.shape for output in outputs] == [(5, *part.shape[1:]) for part in plain]


def test_an_unknown_precision_is_refused(trained, monkeypatch):
    path, info, _, _ = trained
    monkeypatch.setenv("NIGHTSCORE_PRECISION", "int3")
    with pytest.raises(ConfigurationError, match="float32, bfloat16"):
        Program.load(path, info, "cpu")
