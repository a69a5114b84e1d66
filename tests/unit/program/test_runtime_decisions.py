"""Networks by the quick way to run a program and by plain torch: the same decisions, and nearly the
same numbers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.export.passes import move_to_device_pass

from ml.config.schema import Training
from ml.data import samples
from ml.models import build
from ml.program import conversion
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo, sha256
from ml.program.precision import TOLERANCE
from ml.program.program import Program
from ml.program.program_file import export
from ml.program.runtime import OpenVinoRuntime
from ml.training.loop import fit

pytestmark = pytest.mark.slow

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
    network.after_fit(*learned)
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
    outputs = program.predict(pixels)
    if program.info.task == CLASSIFICATION:
        return [outputs.probabilities]
    arrays = [outputs.scores, outputs.anomaly_maps, outputs.novelties]
    return [values for values in arrays if len(values)]


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
    for output, expected in zip(outputs, plain, strict=True):
        assert np.abs(output - expected).max() <= tolerance
    # Float32 rounds in another order here than there: 1e-6 of a threshold is out of reach, and for
    # novelty, which divides by small deviations, 1e-5.
    decisions = zip(
        _decisions(outputs, info),
        _decisions(plain, info),
        _margins(plain, info),
        (1e-6, 1e-5),
        strict=False,
    )
    for decision, expected, margin, rounding in decisions:
        clear = margin > rounding
        assert clear.mean() > 0.98
        assert (decision == expected)[clear].all()


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


@pytest.mark.parametrize("trained", ["anomaly_segmenter"], indirect=True)
def test_bfloat16_computes_again_what_is_close_to_either_threshold(trained, monkeypatch):
    path, info, pixels, plain = trained
    monkeypatch.setenv("NIGHTSCORE_PRECISION", "bfloat16")
    for values, name in ((plain[0], "threshold"), (plain[2], "novelty_threshold")):
        # One threshold out of every image's reach, so that the other alone decides.
        aside = {"threshold": -1.0, "novelty_threshold": -1.0}
        info = replace(info, **aside | {name: float(np.median(values))})
        program = Program.load(path, info, "cpu")
        quick = program.runtime(pixels)
        is_near = np.abs(quick[0 if name == "threshold" else 2] - getattr(info, name)) < 0.1
        assert is_near.any()
        assert np.array_equal(program._near_threshold(quick), np.flatnonzero(is_near))


def _forbidden(exported, sha256, input_size):
    raise AssertionError("it was converted")


def test_a_recorded_form_is_used_without_a_conversion_and_gives_the_same(trained, monkeypatch):
    path, info, pixels, _ = trained
    before = _outputs(Program.load(path, info, "cpu"), pixels[:70])
    cache = path.with_suffix(".openvino.zip")
    converted_file = cache.read_bytes()
    cache.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", _forbidden)
        program = Program.load(path, info, "cpu", converted_file)
    assert isinstance(program.runtime, OpenVinoRuntime)
    assert not cache.exists()
    for output, expected in zip(_outputs(program, pixels[:70]), before, strict=True):
        assert np.array_equal(output, expected)


def test_a_program_moves_to_another_device_with_everything_in_it(trained):
    """As for a GPU: a constant left behind would be on another device than the pixels. `meta`
    computes shapes only, and is there without a GPU."""
    path, info, _, plain = trained
    moved = move_to_device_pass(torch.export.load(path), "meta").module()
    outputs = moved(torch.zeros(5, 3, *info.input_size, dtype=torch.uint8, device="meta"))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [output.device.type for output in outputs] == ["meta"] * len(plain)
    assert [output.shape for output in outputs] == [(5, *part.shape[1:]) for part in plain]
