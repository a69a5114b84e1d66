"""The quick way to run a program and the plain one: the same decisions, nearly the same numbers."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export.passes import move_to_device_pass

from ml import conversion, samples
from ml.config import Training
from ml.errors import ConfigurationError, DataError
from ml.models import build
from ml.program import Program, convert, export
from ml.program_info import ANOMALY, CLASSIFICATION, ProgramInfo, sha256
from ml.runtime import TOLERANCE, OpenVinoRuntime, TorchRuntime
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
    network.calibrate(*learned)
    path = tmp_path_factory.mktemp(name) / "model.pt2"
    export(network, path, SIZES[task])
    with torch.inference_mode():
        outputs = network(torch.from_numpy(pixels[half:]))
    plain = [part.numpy() for part in (outputs if isinstance(outputs, tuple) else (outputs,))]
    info = ProgramInfo("m", 1, task, classes, SIZES[task], None, sha256(path))
    if task == ANOMALY:
        # In the middle of the values, where most images are close to it.
        score, *novelty = (float(np.median(values)) for values in (plain[0], *plain[2:]))
        info = replace(info, threshold=score, novelty_threshold=novelty[0] if novelty else None)
    return path, info, pixels[half:], plain


def _outputs(program: Program, pixels: np.ndarray) -> list[np.ndarray]:
    found = program.predict(pixels)
    if program.info.task == CLASSIFICATION:
        return [found.probabilities]
    outputs = [found.scores, found.heatmaps, found.novelties]
    return [values for values in outputs if len(values)]


def _decisions(outputs: list[np.ndarray], info: ProgramInfo) -> list[np.ndarray]:
    """The class; or the flag, and the mark for review."""
    if info.task == CLASSIFICATION:
        return [outputs[0].argmax(1)]
    flagged = outputs[0] >= info.threshold
    return [flagged, *(novelty >= info.novelty_threshold for novelty in outputs[2:])]


def _margins(outputs: list[np.ndarray], info: ProgramInfo) -> list[np.ndarray]:
    """How far each decision is from being another one."""
    if info.task == CLASSIFICATION:
        best = np.partition(outputs[0], -2, axis=1)
        return [best[:, -1] - best[:, -2]]
    margin = np.abs(outputs[0] - info.threshold)
    return [margin, *(np.abs(novelty - info.novelty_threshold) for novelty in outputs[2:])]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", ""])
def test_the_quick_path_agrees_with_plain_torch_and_decides_the_same(
    trained, precision, monkeypatch
):
    path, info, pixels, plain = trained
    monkeypatch.setenv("NIGHTSCORE_PRECISION", precision)
    program = Program.load(path, info, "cpu")
    assert isinstance(program.runtime, OpenVinoRuntime)
    tolerance = TOLERANCE[program.runtime.precision]
    outputs = _outputs(program, pixels)
    for found, expected in zip(outputs, plain, strict=True):
        assert np.abs(found - expected).max() <= tolerance
    # Float32 rounds in another order here than there: 1e-6 of a threshold is out of reach, and for
    # novelty, which divides by small deviations, 1e-5.
    decided = zip(
        _decisions(outputs, info),
        _decisions(plain, info),
        _margins(plain, info),
        (1e-6, 1e-5),
        strict=False,
    )
    for found, expected, margin, rounding in decided:
        clear = margin > rounding
        assert clear.mean() > 0.98
        assert (found == expected)[clear].all()


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


# What is done with a form does not depend on the architecture; this one has the most outputs.
of_the_most_outputs = pytest.mark.parametrize("trained", ["anomaly_segmenter"], indirect=True)


@of_the_most_outputs
def test_bfloat16_computes_again_what_is_close_to_either_threshold(trained, monkeypatch):
    path, info, pixels, plain = trained
    monkeypatch.setenv("NIGHTSCORE_PRECISION", "bfloat16")
    for values, name in ((plain[0], "threshold"), (plain[2], "novelty_threshold")):
        # One threshold out of every image's reach, so that the other alone decides.
        aside = {"threshold": -1.0, "novelty_threshold": -1.0}
        info = replace(info, **aside | {name: float(np.median(values))})
        program = Program.load(path, info, "cpu")
        quick = program.runtime(pixels)
        close = np.abs(quick[0 if name == "threshold" else 2] - getattr(info, name)) < 0.1
        assert close.any()
        assert np.array_equal(program._too_close(quick), np.flatnonzero(close))


class _Scores(torch.nn.Module):
    """A detector of one, two, three or four outputs: score, heat map, novelty and another."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, pixels):
        shade = pixels.float().mean((1, 2, 3)) / 255
        return (shade, pixels[:, 0, ::2, ::2].float() / 255, 1 - shade, shade)[: self.count]


def test_a_version_from_before_there_was_novelty_still_scores(tmp_path):
    path = tmp_path / "model.pt2"
    export(_Scores(2), path, (16, 16))
    info = ProgramInfo("m", 1, ANOMALY, ("normal", "anomalous"), (16, 16), 0.5, sha256(path))
    pixels = np.full((3, 3, 16, 16), 51, dtype=np.uint8)
    found = Program.load(path, info, "cpu").predict(pixels)
    np.testing.assert_allclose(found.scores, 0.2, rtol=1e-6)
    assert found.heatmaps.shape == (3, 8, 8)
    assert found.novelties.shape == (0,)
    # What is recorded of it must fit.
    with pytest.raises(DataError, match="novelties"):
        Program.load(path, replace(info, novelty_threshold=0.5), "cpu")


@pytest.mark.parametrize("count", [1, 4])
def test_a_detector_with_too_few_or_too_many_outputs_is_refused(count, tmp_path):
    path = tmp_path / "model.pt2"
    export(_Scores(count), path, (16, 16))
    info = ProgramInfo("m", 1, ANOMALY, ("normal", "anomalous"), (16, 16), 0.5, sha256(path))
    with pytest.raises(DataError):
        Program.load(path, info, "cpu")


def test_a_second_load_needs_no_torch_and_no_telemetry(trained):
    path, info, _, _ = trained
    Program.load(path, info, "cpu")
    assert sys.modules["openvino_telemetry"] is None
    code = f"""
import json, sys
from pathlib import Path
from ml.program import Program
from ml.program_info import ProgramInfo
info = json.loads({json.dumps(json.dumps(vars(info)))})
info = ProgramInfo(**info | {{"input_size": tuple(info["input_size"]), "classes": tuple(info["classes"])}})
Program.load(Path({str(path)!r}), info, "cpu")
print(*sorted(name for name in ("torch", "openvino_telemetry", "mlflow") if sys.modules.get(name)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == []


def _kept(path: Path) -> Path:
    """Where the form is kept that this machine made."""
    return path.with_suffix(".openvino.zip")


@of_the_most_outputs
def test_a_damaged_or_foreign_conversion_is_made_again(trained):
    path, info, pixels, _ = trained
    before = _outputs(Program.load(path, info, "cpu"), pixels[:4])[0]
    whole = _kept(path).read_bytes()
    middle = len(whole) // 2
    made = conversion.unpack(whole)
    for other in (
        whole[:middle],
        whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
        conversion.pack(replace(made, program="0" * 64)),
        conversion.pack(replace(made, openvino="2020.1")),
        b"",
    ):
        _kept(path).write_bytes(other)
        assert np.array_equal(_outputs(Program.load(path, info, "cpu"), pixels[:4])[0], before)
        assert conversion.unpack(_kept(path).read_bytes()).program == info.sha256
        assert conversion.unpack(_kept(path).read_bytes()).openvino == conversion.version()
    assert [entry.name for entry in path.parent.iterdir() if "partial" in entry.name] == []


def _forbidden(exported, sha256, input_size):
    raise AssertionError("it was converted")


def test_a_recorded_form_is_used_without_a_conversion_and_gives_the_same(trained, monkeypatch):
    path, info, pixels, _ = trained
    before = _outputs(Program.load(path, info, "cpu"), pixels[:70])
    form = _kept(path).read_bytes()
    _kept(path).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", _forbidden)
        program = Program.load(path, info, "cpu", form)
    assert isinstance(program.runtime, OpenVinoRuntime)
    assert not _kept(path).exists()
    for found, expected in zip(_outputs(program, pixels[:70]), before, strict=True):
        assert np.array_equal(found, expected)


@of_the_most_outputs
def test_the_form_of_another_openvino_is_used_where_it_computes_the_same(trained, monkeypatch):
    """It is held against torch's outputs, which are in it, on every machine."""
    path, info, _, _ = trained
    Program.load(path, info, "cpu")
    made = conversion.unpack(_kept(path).read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", _forbidden)
        _kept(path).unlink()
        form = conversion.pack(replace(made, openvino="2031.1"))
        assert isinstance(Program.load(path, info, "cpu", form).runtime, OpenVinoRuntime)


@of_the_most_outputs
@pytest.mark.parametrize("change", ["graph", "outputs"])
def test_a_recorded_form_that_does_not_do_here_is_made_here_with_a_warning(trained, change, caplog):
    path, info, pixels, _ = trained
    before = _outputs(Program.load(path, info, "cpu"), pixels[:4])
    made = conversion.unpack(_kept(path).read_bytes())
    others = {
        "graph": made.graph.replace(b"<layers>", b"<strata>"),
        "outputs": (made.outputs[0] + 0.01, *made.outputs[1:]),
    }
    form = conversion.pack(replace(made, openvino="2031.1", **{change: others[change]}))
    program = Program.load(path, info, "cpu", form)
    assert isinstance(program.runtime, OpenVinoRuntime)
    for found, expected in zip(_outputs(program, pixels[:4]), before, strict=True):
        assert np.array_equal(found, expected)
    assert "The recorded form of m/1 does not do with OpenVINO" in caplog.text
    assert "nightscore models convert m" in caplog.text


@of_the_most_outputs
def test_the_form_of_another_program_is_refused(trained):
    path, info, _, _ = trained
    Program.load(path, info, "cpu")
    made = conversion.unpack(_kept(path).read_bytes())
    form = conversion.pack(replace(made, program="0" * 64))
    with pytest.raises(DataError, match="is of another program"):
        Program.load(path, info, "cpu", form)


@of_the_most_outputs
def test_a_form_that_cannot_be_kept_is_used_all_the_same(trained, caplog):
    path, info, _, _ = trained
    _kept(path).unlink(missing_ok=True)
    _kept(path).mkdir()
    program = Program.load(path, info, "cpu")
    _kept(path).rmdir()
    assert isinstance(program.runtime, OpenVinoRuntime)
    assert "The form of m/1 cannot be kept in" in caplog.text


@of_the_most_outputs
def test_the_file_of_a_form_says_the_same_after_packing_and_is_the_same_each_time(trained):
    path, info, _, _ = trained
    Program.load(path, info, "cpu")
    form = _kept(path).read_bytes()
    made = conversion.unpack(form)
    assert conversion.pack(made) == form
    assert (made.program, made.openvino) == (info.sha256, conversion.version())
    assert [len(output) for output in made.outputs] == [made.images] * len(made.outputs)


@of_the_most_outputs
def test_a_byte_that_was_changed_is_found_wherever_it_is(trained):
    path, info, _, _ = trained
    Program.load(path, info, "cpu")
    whole = _kept(path).read_bytes()
    made = conversion.pack(conversion.unpack(whole))
    found = 0
    for at in range(0, len(whole), len(whole) // 150):
        damaged = whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :]
        try:
            # What says nothing of the content, such as a date, may be anything.
            assert conversion.pack(conversion.unpack(damaged)) == made
        except ValueError:
            found += 1
    assert found > 100


def test_noise_is_the_same_everywhere():
    drawn = conversion.noise(2, (4, 4))
    assert drawn.dtype == np.uint8
    assert drawn.shape == (2, 3, 4, 4)
    assert drawn[0, 0, 0].tolist() == [87, 210, 213, 216]
    assert np.array_equal(conversion.noise(5, (4, 4))[:2], drawn)


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
    made = conversion.unpack(conversion.convert(programs[0], "0" * 64, (16, 16)))
    runtime = made.runtime("float32", (16, 16))
    made.check(runtime, (16, 16))
    other = TorchRuntime(programs[1], "cpu")(conversion.noise(made.images, (16, 16)))
    with pytest.raises(ValueError, match="its outputs differ from those of torch by"):
        replace(made, outputs=other).check(runtime, (16, 16))
    with pytest.raises(ValueError, match="its outputs have the shape"):
        replace(made, outputs=(other[0][:1],)).check(runtime, (16, 16))


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "model.pt2"
    export(_Exotic(), path, (16, 16))
    info = ProgramInfo("m", 1, CLASSIFICATION, ("a", "b", "c"), (16, 16), None, sha256(path))
    with pytest.raises(Exception, match="i0"):
        conversion.convert(torch.export.load(path), "0" * 64, (16, 16))
    assert convert(path, info) is None
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
