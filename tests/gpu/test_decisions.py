"""Both ways of a model on a GPU: it is trained there, and its program decides there as on a CPU."""

from datetime import date

import numpy as np
import pytest
import torch

from ml.config.schema import Limits
from ml.evaluation.metrics import anomaly_metrics
from ml.program.gpu_runtime import GpuRuntime
from ml.program.info import CLASSIFICATION, ProgramInfo
from ml.program.precision import TOLERANCE
from ml.program.program import Outputs, Program
from ml.program.runtime import TorchRuntime
from ml.scoring.engine import Item, Prediction, score
from ml.storage.download import DownloadResult
from tests.gpu.conftest import IS_REHEARSAL
from tests.gpu.trained import ARCHITECTURES, Trained

# Sums of float32 come out otherwise in another order, and every device and library has its own: an
# image whose score is this close to a threshold can fall on either side of it on two CPUs, too.
# Novelty divides by small deviations, which enlarges the rounding.
_ROUNDING = {"score": 1e-5, "novelty": 1e-4}


@pytest.fixture(scope="session", params=ARCHITECTURES)
def trained(request, train_once) -> Trained:
    return train_once(request.param)


def _reference(trained: Trained) -> Program:
    """What scores on a CPU without OpenVINO, in float32."""
    return Program(TorchRuntime(torch.export.load(trained.path)), trained.info, "cpu")


def _predict(program: Program, pixels: np.ndarray) -> Outputs:
    found = [program.predict(pixels[start : start + 256]) for start in range(0, len(pixels), 256)]
    names = ("probabilities", "scores", "anomaly_maps", "novelties")
    return Outputs(*(np.concatenate([getattr(one, name) for one in found]) for name in names))


def _decisions(outputs: Outputs, program: Program) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each kind of decision, and how far it is from being another one."""
    info = program.info
    if info.task == CLASSIFICATION:
        best = np.partition(outputs.probabilities, -2, axis=1)[:, -2:]
        return {"score": (outputs.probabilities.argmax(axis=1), best[:, 1] - best[:, 0])}
    found = {"score": (outputs.scores, info.threshold)}
    if len(outputs.novelties):
        found["novelty"] = (outputs.novelties, info.novelty_threshold)
    return {name: (values >= at, np.abs(values - at)) for name, (values, at) in found.items()}


def test_a_model_learns_on_the_gpu(trained, record_property):
    losses = [epoch.train_loss for epoch in trained.epochs]
    record_property("losses", [round(loss, 4) for loss in losses])
    record_property("seconds", [round(epoch.seconds, 3) for epoch in trained.epochs])
    assert np.isfinite(losses).all()
    assert all(weight.device.type == "cpu" for weight in trained.network.parameters())
    outputs = _predict(_reference(trained), trained.pixels)
    if trained.info.task == CLASSIFICATION:
        measured = float((outputs.probabilities.argmax(axis=1) == trained.labels).mean())
        chance = 1 / len(trained.info.classes)
    else:
        measured = anomaly_metrics(outputs.scores, trained.labels == 1, None)["auroc"]
        chance = 0.5
    record_property("accuracy or AUROC", round(measured, 4))
    if not IS_REHEARSAL:  # whose few steps teach little
        assert losses[-1] < losses[0]
        assert measured > chance + 0.1


def test_the_gpu_decides_as_the_cpu(trained, device, record_property):
    program = Program.load(trained.path, trained.info, device)
    assert IS_REHEARSAL or isinstance(program.runtime, GpuRuntime)
    reference = _reference(trained)
    there, here = _predict(program, trained.pixels), _predict(reference, trained.pixels)
    for name in ("probabilities", "scores", "anomaly_maps", "novelties"):
        values, expected = getattr(there, name), getattr(here, name)
        if len(expected):
            furthest = float(np.abs(values - expected).max())
            record_property(f"{name} differ by at most", furthest)
            assert furthest <= TOLERANCE["float32"], name
    decided, expected = _decisions(there, program), _decisions(here, reference)
    for name, (decision, margin) in expected.items():
        differs, clear = decided[name][0] != decision, margin > _ROUNDING[name]
        record_property(f"{name}: decisions that differ", int(differs.sum()))
        record_property(f"{name}: images too close to call", int((~clear).sum()))
        assert clear.mean() > 0.98
        assert not (differs & clear).any()


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_a_lower_precision_changes_no_decision(
    trained, device, precision, monkeypatch, record_property
):
    expected = _predict(Program.load(trained.path, trained.info, device), trained.pixels)
    monkeypatch.setenv("NIGHTSCORE_PRECISION", precision)
    program = Program.load(trained.path, trained.info, device)
    record_property("computed in", program.runtime.precision)
    assert IS_REHEARSAL or program.runtime.precision == precision
    found = _predict(program, trained.pixels)
    for name in ("probabilities", "scores", "novelties"):
        values = getattr(expected, name)
        if len(values):
            furthest = float(np.abs(getattr(found, name) - values).max())
            record_property(f"{name} differ by at most", furthest)
            assert furthest <= TOLERANCE[precision], name
    decided = _decisions(found, program)
    for name, (decision, margin) in _decisions(expected, program).items():
        differs = decided[name][0] != decision
        record_property(f"{name}: decisions that differ", int(differs.sum()))
        assert not (differs & (margin > _ROUNDING[name])).any()


def _engine(trained: Trained, *programs: Program) -> dict[tuple[str, int], Prediction]:
    """The engine's result of each program and image, by their name and number."""
    night = date(2026, 1, 1)
    items = [
        Item(night, number, f"s3://b/{number}", str(number), len(content))
        for number, content in enumerate(trained.files)
    ]

    def fetch(wanted):
        for one in wanted:
            yield DownloadResult(one.key, trained.files[one.key.image_id], one.key.etag)

    batches = score(items, programs, fetch, Limits(max_pixels=10**6, max_bytes=10**6))
    results = [prediction for batch in batches for prediction in batch.predictions]
    assert len(results) == len(items) * len(programs)
    return {(result.model, result.item.image_id): result for result in results}


def test_the_engine_gives_each_image_the_result_that_it_has_on_the_cpu(trained, device):
    there = _engine(trained, Program.load(trained.path, trained.info, device))
    here = _engine(trained, _reference(trained))
    assert sorted(there) == sorted(here)
    too_close = 0
    for key, found in there.items():
        expected = here[key]
        pairs = ((found.confidence, expected.confidence), (found.score, expected.score))
        for value, other in pairs:
            assert value == other or abs(value - other) <= TOLERANCE["float32"]
        decisions = (found.predicted_class, found.flagged, found.review)
        if decisions != (expected.predicted_class, expected.flagged, expected.review):
            assert _is_too_close(expected, trained.info), (found, expected)
            too_close += 1
    assert too_close <= len(here) / 1000


def _is_too_close(result: Prediction, info: ProgramInfo) -> bool:
    """Whether rounding may decide what becomes of an image; a tie leaves neither class a half."""
    if info.task == CLASSIFICATION:
        return result.confidence <= 0.5 + _ROUNDING["score"]
    if abs(result.score - info.threshold) <= _ROUNDING["score"]:
        return True
    return abs((result.novelty or 0.0) - (info.novelty_threshold or 1.0)) <= _ROUNDING["novelty"]


def test_two_models_in_one_pass_give_what_each_gives_alone(train_once, device):
    models = [train_once(name) for name in ("residual_network", "anomaly_segmenter")]
    programs = [Program.load(one.path, one.info, device) for one in models]
    together = _engine(models[0], *programs)
    alone = {}
    for program in programs:
        alone |= _engine(models[0], program)
    assert together.keys() == alone.keys()
    for key, found in together.items():
        expected = alone[key]
        for value, other in (
            (found.confidence, expected.confidence),
            (found.score, expected.score),
        ):
            # Batches are of other sizes, for which a GPU may add in another order.
            assert value == other or abs(value - other) <= TOLERANCE["float32"]
