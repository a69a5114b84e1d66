"""A model of Nightscore's, trained from arrays and measured as it scores.

Its exported program is measured, in OpenVINO on the CPU or in torch on a GPU.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import machine
from benchmarks.models.figures import images_per_second, judged, seconds_to
from ml.config.schema import Model
from ml.evaluation.evaluate import evaluate
from ml.evaluation.metrics import calibration
from ml.parallel import parallel_map
from ml.program.device import Device
from ml.program.info import CLASSIFICATION, ProgramInfo, sha256
from ml.program.program import Program
from ml.program.program_file import export

if TYPE_CHECKING:
    from ml.models import Network
    from ml.training.data import Splits
    from ml.training.loop import Epoch

# The accuracy of the notebook that the classifier is compared with.
WANTED = 0.82
_RATED_ON = 2048


@dataclass(frozen=True)
class Trained:
    """A program, its figures, and for a detector the scores of the test images, float32 (N,)."""

    program: Program
    figures: dict[str, float | None]
    scores: np.ndarray


def train(
    name: str, model: Model, splits: "Splits", seed: int, folder: Path, device: Device = "cpu"
) -> Trained:
    """Train with a seed on a device and measure there; `folder` receives the program.

    Figures of classification: accuracy, macro_f1, calibration_error (expected, in 15 bins),
    seconds_to_wanted, epoch_seconds; of anomaly those of `benchmarks.models.figures.judged`; of
    both: train_seconds (evaluation left out), images_per_second and size_mb (of the program's file,
    1 MB = 10^6 bytes).
    """
    network, epochs, train_seconds = _fitted(model, splits, seed, device)
    path = folder / f"{name}-{seed}.pt2"
    export(network, path, model.input_size)
    # The honest threshold is chosen from the program's own scores; until then any will do.
    threshold = None if model.task == CLASSIFICATION else 0.5
    info = ProgramInfo(
        name, None, model.task, splits.classes, model.input_size, threshold, sha256(path)
    )
    program = Program.load(path, info, device)
    test = evaluate(program, splits.test.pixels, splits.test.labels)
    figures: dict[str, float | None] = {
        "train_seconds": train_seconds,
        "images_per_second": _rate(program, splits.test.pixels),
        "size_mb": path.stat().st_size / 1e6,
    }
    if model.task == CLASSIFICATION:
        reached = [(epoch.seconds, epoch.validation["accuracy"]) for epoch in epochs]
        figures |= {key: test.metrics[key] for key in ("accuracy", "macro_f1")}
        measured = calibration(test.drift_values, test.predictions == test.labels)
        figures["calibration_error"] = measured.error
        figures["seconds_to_wanted"] = seconds_to(WANTED, reached)
        figures["epoch_seconds"] = float(np.mean([seconds for seconds, _ in reached]))
    else:
        held = evaluate(program, splits.holdout.pixels, splits.holdout.labels)
        figures |= judged(
            model.threshold,
            (held.outputs.scores, held.labels),
            (test.outputs.scores, test.labels),
        )
    return Trained(program, figures, test.outputs.scores)


def _fitted(
    model: Model, splits: "Splits", seed: int, device: Device
) -> "tuple[Network, list[Epoch], float]":
    """The network, on the CPU, its epochs, and the seconds of its training without evaluations."""
    from ml.training import environment, trainer, validation

    test, _ = splits.test.tensors()
    evaluation_seconds = 0.0

    def evaluate_test(network: "Network") -> dict[str, float]:
        nonlocal evaluation_seconds
        if model.task != CLASSIFICATION:
            return {}
        started = time.perf_counter()
        predicted = validation.predict(network, test).argmax(axis=1)
        evaluation_seconds += time.perf_counter() - started
        return {"accuracy": float((predicted == splits.test.labels).mean())}

    epochs: list[Epoch] = []
    started = time.perf_counter()
    with environment.deterministic(device):
        network = trainer.train_network(
            model.model_copy(update={"seed": seed}),
            splits,
            device=device,
            validate=evaluate_test,
            on_epoch=epochs.append,
        )
    seconds = time.perf_counter() - started - evaluation_seconds
    return network.cpu(), epochs, seconds


def _rate(program: Program, pixels: np.ndarray) -> float:
    """Images per second on all cores, as a shard is scored: one batch per thread."""
    pixels = pixels[:_RATED_ON]
    size = program.batch_size
    batches = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    threads = machine.cores()

    def run() -> None:
        for _ in parallel_map(program.predict, batches, threads=threads, buffer_size=2 * threads):
            pass

    return images_per_second(run, len(pixels))
