"""How long it takes to learn CIFAR-10 to an accuracy of 94 % and of 96 %: ours, and airbench.

Ours is `cifar10-classifier`'s architecture in a ladder of widths and epochs of growing cost. After
each epoch its accuracy on the test images is measured, which is not timed, chooses nothing, and
says when 0.94 and 0.96 were reached. airbench's programs are made for these two accuracies. Both
train from all images of the split `train`, the same decoded JPEGs, after a warm-up.

Prints a line of JSON for each training as soon as it is measured. Needs no service; airbench needs
a GPU.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.models import cifar10
from benchmarks.models.json_lines import print_lines
from benchmarks.models.profiles import source
from benchmarks.paths import REPOSITORY
from ml.config.loading import load
from ml.config.schema import Model
from ml.program.device import Device, select_device

if TYPE_CHECKING:
    from ml.models import Network
    from ml.training.data import Splits

MODEL = "cifar10-classifier"
WANTED = (0.94, 0.96)
# Width and epochs, from the cheapest to the dearest.
LADDER = {
    "width-48-epochs-8": (48, 8),
    "width-64-epochs-12": (64, 12),
    "width-96-epochs-16": (96, 16),
    "width-128-epochs-24": (128, 24),
    "width-192-epochs-32": (192, 32),
}
AIRBENCH = "airbench"
PART = "time-to-accuracy"
# Seeds of each of airbench's programs: the second takes ten times as long.
_AIRBENCH_SEEDS = {"94": 3, "96": 1}
_WARM_UP_IMAGES = 2048
_QUICK_IMAGES, _QUICK_WIDTH = 10, 8  # images of each SPLIT/CLASS
Measured = dict[str, Any]


def names() -> list[str]:
    """The trainings, in the order in which they are run."""
    peers = [
        f"{AIRBENCH}-{target}/{seed}"
        for target, seeds in _AIRBENCH_SEEDS.items()
        for seed in range(seeds)
    ]
    return [*(f"{rung}/0" for rung in LADDER), *peers]


def train_ours(model: Model, splits: "Splits", device: Device) -> Measured:
    """Train once; seconds until each wanted accuracy, None where it is not reached."""
    import torch

    _fit(_for_epochs(model, 1), _first(splits), device)  # kernels are loaded
    train_seconds, reached = _fit(model, splits, device)
    return {
        "train_seconds": train_seconds,
        "accuracy": reached[-1][1],
        **{
            f"seconds_to_{wanted}": next((s for s, found in reached if found >= wanted), None)
            for wanted in WANTED
        },
        "accuracies": [round(accuracy, 4) for _, accuracy in reached],
        "gpu_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None,
    }


def _first(splits: "Splits") -> "Splits":
    """A few of the training images, to warm up with."""
    train = splits.train
    few = slice(None, None, max(1, len(train) // _WARM_UP_IMAGES))
    return replace(splits, train=replace(train, pixels=train.pixels[few], labels=train.labels[few]))


def _fit(model: Model, splits: "Splits", device: Device) -> tuple[float, list[tuple[float, float]]]:
    """Seconds of the training; and so far, with the accuracy on the test images, at each epoch.

    The time of these evaluations is left out everywhere.
    """
    from ml.training import environment, trainer, validation

    test, _ = splits.test.tensors()
    reached: list[tuple[float, float]] = []
    evaluation_seconds = 0.0

    def evaluate(network: "Network") -> dict[str, float]:
        nonlocal evaluation_seconds
        paused = time.perf_counter()
        predicted = validation.predict(network, test).argmax(axis=1)
        accuracy = float((predicted == splits.test.labels).mean())
        reached.append((paused - started - evaluation_seconds, accuracy))
        evaluation_seconds += time.perf_counter() - paused
        return {"accuracy": accuracy}

    with environment.deterministic(device):
        started = time.perf_counter()
        trainer.train_network(model, splits, device=device, validate=evaluate)
        return time.perf_counter() - started - evaluation_seconds, reached


def _for_epochs(model: Model, epochs: int) -> Model:
    """The model with so many epochs on each device."""
    training = {
        name: found.model_copy(update={"epochs": epochs}) for name, found in model.training.items()
    }
    return model.model_copy(update={"training": training})


def _rung(name: str, model: Model, quick: bool) -> Model:
    width, epochs = (_QUICK_WIDTH, 1) if quick else LADDER[name]
    options = model.options | {"width": width}
    return _for_epochs(model.model_copy(update={"options": options}), epochs)


def measured(
    runs: list[str], data: Path | None, device: Device, scratch: Path, quick: bool
) -> Iterator[Measured]:
    """Run trainings, NAME/SEED; one that fails is named, and the next one is run."""
    from ml.training.trainer import training_parameters

    model = load(REPOSITORY / "nightscore.yaml").model(MODEL)
    path, synthetic = source(model.dataset, data, scratch)
    splits = cifar10.load(path, model, _QUICK_IMAGES if quick else None)
    about = {
        "gpu": machine.describe(device)["gpu"],
        "source": f"synthetic samples ({path.name})" if synthetic else path.name,
        "images": {"train": len(splits.train), "test": len(splits.test)},
        "quick": quick,
    }
    for name in runs:
        rung, _, seed = name.rpartition("/")
        if rung in LADDER:
            chosen = _rung(rung, model, quick)
            parameters = training_parameters(chosen, device).model_dump()
            with_it = {"options": chosen.options, "parameters": parameters}
            yield about | with_it | _attempt(name, train_ours, chosen, splits, device)
    peers = [name for name in runs if name.startswith(AIRBENCH)]
    if not peers:
        return
    from benchmarks.peers import airbench_cifar

    airbench_cifar.write(splits, scratch)
    if reason := airbench_cifar.missing(device):
        yield {"part": AIRBENCH, "seconds": 0.0, "left_out": reason}
        return
    for name in peers:
        target, _, seed = name.removeprefix(f"{AIRBENCH}-").partition("/")
        yield about | _attempt(name, airbench_cifar.train, target, int(seed), scratch)


def _attempt(name: str, train: Callable[..., Measured], *arguments: Any) -> Measured:
    """What a training found, or why it failed: the next one is run all the same."""
    started = time.perf_counter()
    try:
        found = {"figures": train(*arguments)}
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:2000]}
    return {"part": f"{PART}/{name}", "seconds": time.perf_counter() - started, **found}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.time_to_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="holds cifar10.tar (or .tar.xz)")
    parser.add_argument("--skip", nargs="*", default=[], metavar="PART/NAME/SEED")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch: a smoke run")
    return parser.parse_args()


def main() -> None:
    """Print a line of JSON for each training as soon as it is measured."""
    arguments = _arguments()
    runs = [name for name in names() if f"{PART}/{name}" not in arguments.skip]
    print_lines(
        lambda scratch: measured(runs, arguments.data, select_device(), scratch, arguments.quick)
    )


if __name__ == "__main__":
    main()
