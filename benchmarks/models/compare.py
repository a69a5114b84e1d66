"""How good the models are, and what they cost, beside others on the same images.

Reads a tar or folder laid out SPLIT/CLASS/FILE, with no service, and trains and measures each
contender with several seeds on the CPU. The images are divided as a snapshot divides them, the same
way for all contenders and seeds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.errors import ContenderError
from benchmarks.models import dataset, report
from benchmarks.models.figures import over_seeds
from benchmarks.models.training import WANTED, Trained, train
from benchmarks.paths import REPOSITORY
from benchmarks.peers import detectors
from ml.config.loading import load
from ml.config.schema import Model, Training
from ml.errors import NightscoreError
from ml.models import anomalies
from ml.program.info import ANOMALY, CLASSIFICATION

if TYPE_CHECKING:
    from ml.training.data import Splits

NAMES = {ANOMALY: "spill-anomaly", CLASSIFICATION: "cifar10-classifier"}
OURS, KNOWN = "nightscore", "known"
# The same, with as few epochs as reach the notebook's accuracy.
SHORT, SHORT_EPOCHS = "short", 2
# As the example in docs/configuration.md.
BASELINE = Training(epochs=12, batch_size=64, learning_rate=0.003, weight_decay=0.0001)
_BACKBONE = "EfficientNet-Lite0 (ImageNet)"
# Images of a SPLIT/CLASS in a quick run.
_QUICK = {ANOMALY: 300, CLASSIFICATION: 60}
_QUICK_STEPS = 2
_NOTEBOOK_ACCURACY, _NOTEBOOK_MINUTES = 0.8194, 36

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Contender:
    """`run` trains with a seed and measures; None for one that cannot be run, `note` says why."""

    note: str
    run: Callable[[int], Figures] | None


class Bench:
    """The images and the model of a task; where programs are written to; what was trained."""

    def __init__(self, task: str, data: Path, folder: Path, quick: bool) -> None:
        self.name, self.folder, self.quick = NAMES[task], folder, quick
        self.model = _quick(_model(task), quick)
        self.splits: Splits = dataset.load(data, self.model, _QUICK[task] if quick else None)
        self.first: Trained | None = None

    def contenders(self, leave_out: Sequence[str]) -> dict[str, Contender]:
        """By name: those of the task, or ours with each kind of anomaly left out in turn."""
        if leave_out:
            return {f"{OURS}, no {kind}": self._without(kind) for kind in leave_out}
        if self.model.task == CLASSIFICATION:
            return {
                OURS: Contender("", self._ours),
                SHORT: Contender(f"{OURS} in {SHORT_EPOCHS} epochs", self._short),
                "notebook": self._notebook(),
            }
        library = f"anomalib's, enlarged twice; backbone {_BACKBONE}"
        return {
            OURS: Contender("", self._ours),
            "autoencoder": Contender("trained from normal images only", self._autoencoder),
            "patchcore": self._peer("patchcore", f"{library}; up to 1,000 images, 1 % of patches"),
            "padim": self._peer("padim", f"{library}; up to 4,000 images, 100 features"),
            "efficientad": Contender(
                "anomalib's needs downloaded weights and images (its teacher, ImageNette)", None
            ),
        }

    def _ours(self, seed: int) -> Figures:
        trained = train(self.name, self.model, self.splits, seed, self.folder)
        self.first = self.first or trained
        return trained.figures

    def _short(self, seed: int) -> Figures:
        model = _in_epochs(self.model, 1 if self.quick else SHORT_EPOCHS)
        return train(SHORT, model, self.splits, seed, self.folder).figures

    def _autoencoder(self, seed: int) -> Figures:
        model = _quick(
            self.model.model_copy(
                update={
                    "architecture": "attention_autoencoder",
                    "options": {},
                    "training": {"cpu": BASELINE},
                }
            ),
            self.quick,
        )
        return train("autoencoder", model, self.splits, seed, self.folder).figures

    def _without(self, kind: str) -> Contender:
        model, splits = _left_out(kind, self.model, self.splits)
        name = f"{self.name}-no-{kind}"
        return Contender("", lambda seed: train(name, model, splits, seed, self.folder).figures)

    def _peer(self, name: str, note: str) -> Contender:
        if not detectors.PYTHON.exists():
            return Contender("needs the environment that `make peers` installs", None)
        return Contender(
            note,
            lambda seed: dict(detectors.detect(name, self.model, self.splits, seed, self.folder)),
        )

    def _notebook(self) -> Contender:
        from benchmarks.peers import resnet_notebook as notebook

        steps = _QUICK_STEPS if self.quick else notebook.STEPS
        fit = self.splits.train
        note = (
            f"torchvision's ResNet-18 at 224 x 224; seconds of an epoch extrapolated from {steps} "
            f"steps of {notebook.BATCH} images after {notebook.WARM_UP} to warm up; accuracy not "
            f"measured (published: {_NOTEBOOK_ACCURACY} after {_NOTEBOOK_MINUTES} minutes on a GPU)"
        )
        classes = len(self.splits.classes)
        return Contender(
            note, lambda seed: dict(notebook.measure(fit.pixels, fit.labels, classes, seed, steps))
        )


def _model(task: str) -> Model:
    return load(REPOSITORY / "nightscore.yaml").model(NAMES[task])


def _quick(model: Model, quick: bool) -> Model:
    """One epoch, where it is to be quick."""
    return _in_epochs(model, 1) if quick else model


def _in_epochs(model: Model, epochs: int) -> Model:
    training = model.training["cpu"].model_copy(update={"epochs": epochs})
    return model.model_copy(update={"training": {"cpu": training}})


def _left_out(kind: str, model: Model, splits: "Splits") -> "tuple[Model, Splits]":
    """The model without a kind of synthetic anomaly, or the splits without known anomalies.

    Several kinds are joined by a plus sign: `spill+known`. Held-out known anomalies, which set the
    threshold, stay.
    """
    left_out = set(kind.split("+"))
    drawn = model.options.get("synthetic", anomalies.names())
    if unknown := left_out - {KNOWN, *drawn}:
        known = ", ".join(dict.fromkeys([KNOWN, *drawn]))
        raise SystemExit(f"--leave-out {'+'.join(sorted(unknown))}: known are {known}.")
    options = model.options | {"synthetic": [name for name in drawn if name not in left_out]}
    model = model.model_copy(update={"options": options})
    return model, _of_normal_images(splits) if KNOWN in left_out else splits


def _of_normal_images(splits: "Splits") -> "Splits":
    from ml.training.data import Split

    normal = splits.train.labels == 0
    rows = [row for row, kept in zip(splits.train.rows, normal, strict=True) if kept]
    return replace(
        splits, train=Split(splits.train.pixels[normal], splits.train.labels[normal], rows)
    )


def measure(
    contenders: Mapping[str, Contender], seeds: Sequence[int], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each contender: the figures of each seed, and their spread."""
    rows = []
    for name, contender in contenders.items():
        note = contender.note
        try:
            runs = _runs(name, contender, seeds, say)
        except ContenderError as error:  # the others' minutes are not to be lost
            say(str(error))
            runs, note = [], "failed"
        figures = over_seeds(runs) if runs else None
        rows.append(
            {"name": name, "note": note, "seeds": len(runs), "runs": runs, "figures": figures}
        )
    return rows


def _runs(
    name: str, contender: Contender, seeds: Sequence[int], say: Callable[[str], None]
) -> list[Figures]:
    runs = []
    for seed in seeds if contender.run else ():
        assert contender.run is not None
        started = time.perf_counter()
        runs.append(contender.run(seed))
        say(f"{name}, seed {seed}: {time.perf_counter() - started:.0f} s")
    return runs


def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How much longer the notebook takes to its accuracy, where both were measured."""
    found = {row["name"]: row["figures"] for row in rows}
    if "notebook" not in found:
        return []
    epoch = found["notebook"]["epoch_seconds"]["mean"]
    return [_ratio(name, found[name], epoch) for name in (OURS, SHORT) if name in found]


def _ratio(name: str, figures: Mapping[str, Any], epoch: float) -> str:
    ours = figures["seconds_to_wanted"]
    if ours is None:
        return f"{name} did not reach {WANTED} with every seed: no ratio of times"
    return (
        f"notebook / {name} in seconds to {WANTED}: {epoch / ours['mean']:.0f} for each epoch that "
        "the notebook needs"
    )


def _document(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    splits = bench.splits
    seeds = range(1 if bench.quick else arguments.seeds)
    rows = measure(_chosen(bench, arguments), seeds, _say)
    return {
        "task": arguments.task,
        "model": bench.name,
        "data": arguments.data.name,
        "images": {
            "fit": len(splits.train),
            "holdout": len(splits.holdout),
            "test": len(splits.test),
        },
        "seeds": len(seeds),
        "quick": bench.quick,
        "rows": rows,
        "remarks": remarks(rows),
        "minutes": (time.perf_counter() - started) / 60,
        "date": date.today().isoformat(),
        "machine": machine.describe("cpu"),
    }


def _chosen(bench: Bench, arguments: argparse.Namespace) -> dict[str, Contender]:
    contenders = bench.contenders(arguments.leave_out)
    if unknown := set(arguments.only) - set(contenders):
        known = ", ".join(contenders)
        raise SystemExit(f"--only {' '.join(sorted(unknown))}: known are {known}.")
    return {n: one for n, one in contenders.items() if not arguments.only or n in arguments.only}


def _write_errors(bench: Bench, path: Path) -> None:
    from benchmarks.models.mistakes import picture

    if bench.first is None or bench.model.task != ANOMALY:
        _say(f"{path} is not written: it shows the errors of {OURS} for the task anomaly.")
        return
    threshold = bench.first.figures["threshold"]
    assert threshold is not None
    path.write_bytes(picture(bench.first.program, bench.splits.test, bench.first.scores, threshold))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, choices=NAMES)
    parser.add_argument(
        "--data", required=True, type=Path, metavar="PATH", help="a tar or folder: SPLIT/CLASS/FILE"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, default 3")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="anomaly: nightscore autoencoder patchcore padim; classification: nightscore short "
        "notebook",
    )
    parser.add_argument(
        "--leave-out",
        nargs="+",
        default=[],
        metavar="KIND",
        help="anomaly: instead of the contenders, ours trained without each of these in turn: a "
        "kind of synthetic anomaly that nightscore.yaml names, or `known`, the known anomalies, or "
        "several joined by +",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--errors",
        type=Path,
        metavar="FILE.png",
        help="anomaly: a picture of what ours, with the first seed, gets wrong on the test images",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few images, one epoch, one seed: a smoke run",
    )
    found = parser.parse_args(arguments)
    if found.leave_out and found.task != ANOMALY:
        parser.error("--leave-out is for the task anomaly")
    if found.seeds < 1:
        parser.error("--seeds must be at least 1")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the contenders of a task and print the table."""
    found = _arguments(arguments)
    for name in list(os.environ):
        if name.startswith("NIGHTSCORE_"):  # a precision, for instance
            del os.environ[name]
    try:
        with tempfile.TemporaryDirectory(prefix="nightscore-models-") as folder:
            _compare(found, Path(folder))
    except NightscoreError as error:
        raise SystemExit(str(error)) from None


def _compare(arguments: argparse.Namespace, folder: Path) -> None:
    bench = Bench(arguments.task, arguments.data, folder, arguments.quick)
    document = _document(bench, arguments)
    print("\n".join(report.lines(document)), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if arguments.errors:
        _write_errors(bench, arguments.errors)


if __name__ == "__main__":
    main()
