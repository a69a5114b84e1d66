"""Programs converted for CPUs: which one is used, kept, converted again or refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ml.errors import ConfigurationError, DataError
from ml.program import conversion
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo, sha256
from ml.program.program import Program
from ml.program.program_file import export
from ml.program.runtime import OpenVinoRuntime, TorchRuntime
from ml.program.selection import convert_program


class _Scores(torch.nn.Module):
    """A detector of one, two, three or four outputs: score, heat map, novelty and another."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, pixels):
        shade = pixels.float().mean((1, 2, 3)) / 255
        return (shade, pixels[:, 0, ::2, ::2].float() / 255, 1 - shade, shade)[: self.count]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A detector's program that is converted in no time, what is recorded of it, and images."""
    path = tmp_path_factory.mktemp("small") / "model.pt2"
    export(_Scores(3), path, (16, 16))
    info = ProgramInfo(
        "m", 1, ANOMALY, ("normal", "anomalous"), (16, 16), 0.5, sha256(path), novelty_threshold=0.5
    )
    pixels = conversion.noise(8, (16, 16))
    return path, info, pixels


def _scores(program: Program, pixels: np.ndarray) -> np.ndarray:
    return program.predict(pixels).scores


def test_a_version_from_before_there_was_novelty_still_scores(tmp_path):
    path = tmp_path / "model.pt2"
    export(_Scores(2), path, (16, 16))
    info = ProgramInfo("m", 1, ANOMALY, ("normal", "anomalous"), (16, 16), 0.5, sha256(path))
    pixels = np.full((3, 3, 16, 16), 51, dtype=np.uint8)
    outputs = Program.load(path, info, "cpu").predict(pixels)
    np.testing.assert_allclose(outputs.scores, 0.2, rtol=1e-6)
    assert outputs.anomaly_maps.shape == (3, 8, 8)
    assert outputs.novelties.shape == (0,)
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


def test_a_second_load_needs_no_torch_and_no_telemetry(small):
    path, info, _ = small
    Program.load(path, info, "cpu")
    assert sys.modules["openvino_telemetry"] is None
    code = f"""
import json, sys
from pathlib import Path
from ml.program.program import Program
from ml.program.info import ProgramInfo
info = json.loads({json.dumps(json.dumps(vars(info)))})
info = ProgramInfo(**info | {{"input_size": tuple(info["input_size"]), "classes": tuple(info["classes"])}})
Program.load(Path({str(path)!r}), info, "cpu")
print(*sorted(name for name in ("torch", "openvino_telemetry", "mlflow") if sys.modules.get(name)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == []


def _cache_path(path: Path) -> Path:
    """Where this machine keeps the converted program."""
    return path.with_suffix(".openvino.zip")


def test_a_damaged_or_foreign_conversion_is_made_again(small):
    path, info, pixels = small
    before = _scores(Program.load(path, info, "cpu"), pixels)
    whole = _cache_path(path).read_bytes()
    middle = len(whole) // 2
    converted = conversion.unpack(whole)
    for other in (
        whole[:middle],
        whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
        conversion.pack(replace(converted, program="0" * 64)),
        conversion.pack(replace(converted, openvino="2020.1")),
        b"",
    ):
        _cache_path(path).write_bytes(other)
        assert np.array_equal(_scores(Program.load(path, info, "cpu"), pixels), before)
        assert conversion.unpack(_cache_path(path).read_bytes()).program == info.sha256
        assert conversion.unpack(_cache_path(path).read_bytes()).openvino == conversion.version()
    assert [entry.name for entry in path.parent.iterdir() if "partial" in entry.name] == []


def _forbidden(exported, sha256, input_size):
    raise AssertionError("it was converted")


def test_the_form_of_another_openvino_is_used_where_it_computes_the_same(small, monkeypatch):
    """It is held against torch's outputs, which are in it, on every machine."""
    path, info, _ = small
    Program.load(path, info, "cpu")
    converted = conversion.unpack(_cache_path(path).read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", _forbidden)
        _cache_path(path).unlink()
        converted_file = conversion.pack(replace(converted, openvino="2031.1"))
        assert isinstance(Program.load(path, info, "cpu", converted_file).runtime, OpenVinoRuntime)


@pytest.mark.parametrize("change", ["graph", "outputs"])
def test_a_recorded_form_that_does_not_do_here_is_made_here_with_a_warning(small, change, caplog):
    path, info, pixels = small
    before = _scores(Program.load(path, info, "cpu"), pixels)
    converted = conversion.unpack(_cache_path(path).read_bytes())
    others = {
        "graph": converted.graph.replace(b"<layers>", b"<strata>"),
        "outputs": (converted.outputs[0] + 0.01, *converted.outputs[1:]),
    }
    converted_file = conversion.pack(
        replace(converted, openvino="2031.1", **{change: others[change]})
    )
    program = Program.load(path, info, "cpu", converted_file)
    assert isinstance(program.runtime, OpenVinoRuntime)
    assert np.array_equal(_scores(program, pixels), before)
    assert "The recorded form of m/1 does not work with OpenVINO" in caplog.text
    assert "nightscore models convert m" in caplog.text


def test_the_form_of_another_program_is_refused(small):
    path, info, _ = small
    Program.load(path, info, "cpu")
    converted = conversion.unpack(_cache_path(path).read_bytes())
    converted_file = conversion.pack(replace(converted, program="0" * 64))
    with pytest.raises(DataError, match="is of another program"):
        Program.load(path, info, "cpu", converted_file)


def test_a_form_that_cannot_be_kept_is_used_all_the_same(small, caplog):
    path, info, _ = small
    _cache_path(path).unlink(missing_ok=True)
    _cache_path(path).mkdir()
    program = Program.load(path, info, "cpu")
    _cache_path(path).rmdir()
    assert isinstance(program.runtime, OpenVinoRuntime)
    assert "The form of m/1 cannot be kept in" in caplog.text


def test_the_file_of_a_form_says_the_same_after_packing_and_is_the_same_each_time(small):
    path, info, _ = small
    Program.load(path, info, "cpu")
    converted_file = _cache_path(path).read_bytes()
    converted = conversion.unpack(converted_file)
    assert conversion.pack(converted) == converted_file
    assert (converted.program, converted.openvino) == (info.sha256, conversion.version())
    assert [len(output) for output in converted.outputs] == [converted.images] * len(
        converted.outputs
    )


def test_a_byte_that_was_changed_is_found_wherever_it_is(small):
    path, info, _ = small
    Program.load(path, info, "cpu")
    whole = _cache_path(path).read_bytes()
    packed = conversion.pack(conversion.unpack(whole))
    detected = 0
    for offset in range(0, len(whole), len(whole) // 150):
        damaged = whole[:offset] + bytes([whole[offset] ^ 0x5A]) + whole[offset + 1 :]
        try:
            # What says nothing of the content, such as a date, may be anything.
            assert conversion.pack(conversion.unpack(damaged)) == packed
        except ValueError:
            detected += 1
    assert detected > 100


def test_noise_is_the_same_everywhere():
    noise = conversion.noise(2, (4, 4))
    assert noise.dtype == np.uint8
    assert noise.shape == (2, 3, 4, 4)
    assert noise[0, 0, 0].tolist() == [87, 210, 213, 216]
    assert np.array_equal(conversion.noise(5, (4, 4))[:2], noise)


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
    pixels = conversion.noise(4, (16, 16))
    expected = _Exotic()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(program.predict(pixels).probabilities, expected)


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
    converted = conversion.unpack(conversion.convert(programs[0], "0" * 64, (16, 16)))
    runtime = converted.runtime("float32", (16, 16))
    converted.check(runtime, (16, 16))
    other = TorchRuntime(programs[1])(conversion.noise(converted.images, (16, 16)))
    with pytest.raises(ValueError, match="its outputs differ from those of torch by"):
        replace(converted, outputs=other).check(runtime, (16, 16))
    with pytest.raises(ValueError, match="its outputs have the shape"):
        replace(converted, outputs=(other[0][:1],)).check(runtime, (16, 16))


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "model.pt2"
    export(_Exotic(), path, (16, 16))
    info = ProgramInfo("m", 1, CLASSIFICATION, ("a", "b", "c"), (16, 16), None, sha256(path))
    with pytest.raises(Exception, match="i0"):
        conversion.convert(torch.export.load(path), "0" * 64, (16, 16))
    assert convert_program(path, info) is None
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_precision_is_refused(small, monkeypatch):
    path, info, _ = small
    monkeypatch.setenv("NIGHTSCORE_PRECISION", "int3")
    with pytest.raises(ConfigurationError, match="float32, tf32, bfloat16"):
        Program.load(path, info, "cpu")
