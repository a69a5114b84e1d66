"""How long training takes with a profile of `nightscore.yaml`, and how good the models become.

Trains each model with the parameters of the device (`training.gpu` on a GPU, `training.cpu` else),
as the retrain step does, and measures its exported program on the split `test`. Needs no service.
Prints a line of JSON for each model and seed as soon as it is measured.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.models import dataset
from benchmarks.models.json_lines import print_lines
from benchmarks.models.training import train
from benchmarks.paths import REPOSITORY
from ml.config.loading import load
from ml.config.schema import Model
from ml.data import samples
from ml.program.device import Device, select_device

if TYPE_CHECKING:
    from ml.training.data import Splits

MODELS = ("cifar10-classifier", "spill-anomaly")
# In a quick run: images of a SPLIT/CLASS, and epochs.
_QUICK = {"cifar10-classifier": 30, "spill-anomaly": 150}


def names(seeds: int) -> list[str]:
    """MODEL/SEED of each training, in the order in which they are run: each model once first."""
    return [f"{model}/{seed}" for seed in range(seeds) for model in MODELS]


def source(dataset: str, data: Path | None, scratch: Path) -> tuple[Path, bool]:
    """A folder or tar with labelled images, and whether they are the built-in synthetic ones.

    `data` may hold NAME.tar, NAME.tar.xz or a folder NAME; the samples are drawn into `scratch`.
    """
    for name in (f"{dataset}.tar", f"{dataset}.tar.xz", dataset):
        if data is not None and (data / name).exists():
            return data / name, False
    if not (scratch / dataset).exists():
        samples.write(scratch)
    return scratch / dataset, True


def measured(
    runs: Sequence[str], data: Path | None, device: Device, scratch: Path, quick: bool
) -> Iterator[dict[str, Any]]:
    """Train and measure each of `runs`, MODEL/SEED."""
    from ml.training.trainer import training_parameters

    known = load(REPOSITORY / "nightscore.yaml")
    loaded: dict[str, tuple[Splits, str]] = {}
    for name in runs:
        model_name, _, seed = name.rpartition("/")
        model = _quick(known.model(model_name), device) if quick else known.model(model_name)
        if model_name not in loaded:
            path, synthetic = source(model.dataset, data, scratch)
            most = _QUICK[model_name] if quick else None
            about = f"synthetic samples ({path.name})" if synthetic else path.name
            loaded[model_name] = dataset.load(path, model, most), about
        splits, about = loaded[model_name]
        started = time.perf_counter()
        trained = train(model_name, model, splits, int(seed), scratch, device)
        yield {
            "part": name,
            "device": device,
            "gpu": machine.describe(device)["gpu"],
            "source": about,
            "images": {
                "fit": len(splits.train),
                "holdout": len(splits.holdout),
                "test": len(splits.test),
            },
            "parameters": training_parameters(model, device).model_dump(),
            "figures": trained.figures,
            "seconds": time.perf_counter() - started,
            "quick": quick,
        }


def _quick(model: Model, device: Device) -> Model:
    from ml.training.trainer import training_parameters

    used = training_parameters(model, device).model_copy(update={"epochs": 1})
    return model.model_copy(update={"training": {"cpu": used, "gpu": used}})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.profiles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="holds cifar10.tar, spill.tar (or .tar.xz, or folders); what is not there is trained "
        "from synthetic samples, and says so",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, default 3")
    parser.add_argument("--skip", nargs="*", default=[], metavar="MODEL/SEED")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch: a smoke run")
    return parser.parse_args()


def main() -> None:
    """Print a line of JSON for each model and seed as soon as it is measured."""
    arguments = _arguments()
    runs = [name for name in names(arguments.seeds) if name not in arguments.skip]
    print_lines(
        lambda scratch: measured(runs, arguments.data, select_device(), scratch, arguments.quick)
    )


if __name__ == "__main__":
    main()
