"""What a night costs before its first image is scored.

Each line is a command of its own, run in turns beside the others on a local stack in a temporary
folder (Postgres, S3 and MLflow, on the same cores), with a version of `spill-anomaly` that was
trained for one epoch on sample images:

- `import mlflow` alone, and a night without new images;
- a night of 300 images by a version that this machine has never used: its form for the CPU fetched,
  or, for comparison, converted here; and by a version that it has used before.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import machine
from ml.config.loading import configuration
from ml.database.connection import transaction
from ml.database.tables import ModelVersion
from ml.settings import settings, state_folder
from ml.stack.local import LocalStack
from ml.storage.object_store import object_store

# The command.
NIGHTSCORE = str(Path(sys.executable).parent / "nightscore")
STREAM, MODEL, IMAGES = "spill", "spill-anomaly", 300
_DATES = (date(2026, 1, 1) + timedelta(days=n) for n in range(1000))
_CONFIGURATION = """\
storage: s3://nightscore
streams:
  spill: {prefix: "s3://nightscore/streams/spill", models: [spill-anomaly], lookback_nights: 0}
models:
  spill-anomaly:
    task: anomaly
    dataset: spill
    architecture: anomaly_segmenter
    options: {width: 16, synthetic: [empty, empty, spill, torn]}
    input_size: [32, 56]
    holdout_by: scene
    training: {cpu: {epochs: 1, batch_size: 64, learning_rate: 0.003}}
    gate: {metric: auroc, minimum: 0, max_drop: 1}
"""


@dataclass(frozen=True)
class Spent:
    """Wall and CPU seconds of a process, and its largest size in MB."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


# A child is as large at first as the process that starts it, so a small one does.
_MEASURE = """
import json, os, subprocess, sys, time
started = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
seconds = time.monotonic() - started
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000]))
sys.exit(bool(status))
"""


def spent(command: list[str]) -> Spent:
    """Run a command as a process of its own; returns what it took."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *command], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed.")
    return Spent(*json.loads(done.stdout))


def _import() -> Spent:
    return spent([sys.executable, "-c", "import mlflow"])


def _night(night: date) -> Spent:
    return spent([NIGHTSCORE, "score", STREAM, "--date", night.isoformat(), "--json"])


def _forget() -> None:
    shutil.rmtree(state_folder() / "cache" / "programs", ignore_errors=True)


class Nights:
    """Nights of the same 300 images, each of which is new."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())[:IMAGES]
        self._images = [(path.suffix, path.read_bytes()) for path in files]

    def new(self) -> date:
        """Put a night into the bucket."""
        night = next(_DATES)
        prefix = configuration().stream(STREAM).prefix
        for number, (suffix, content) in enumerate(self._images):
            object_store().put(f"{prefix}/dt={night}/{number:03}{suffix}", content)
        return night


def _never_used(nights: Nights) -> Spent:
    _forget()
    return _night(nights.new())


def _converted_here(nights: Nights) -> Spent:
    with _without_form():
        return _never_used(nights)


def _used_before(nights: Nights) -> Spent:
    """In a turn it follows one that has left the version here."""
    return _night(nights.new())


@contextmanager
def _without_form() -> Iterator[None]:
    """The version's row is as before there were forms."""
    columns = (ModelVersion.openvino_sha256, ModelVersion.openvino_version)
    with transaction() as session:
        found = session.execute(sa.select(*columns).where(ModelVersion.model == MODEL)).one()
    _record(None, None)
    try:
        yield
    finally:
        _record(*found)


def _record(sha256: str | None, version: str | None) -> None:
    values = {"openvino_sha256": sha256, "openvino_version": version}
    with transaction() as session:
        session.execute(sa.update(ModelVersion).where(ModelVersion.model == MODEL).values(values))


@contextmanager
def stack(folder: Path) -> Iterator[Nights]:
    """Postgres, S3 and MLflow with a champion of `MODEL`; gives nights of `STREAM`."""
    os.environ["NIGHTSCORE_HOME"] = str(folder / "stack")
    os.environ["NIGHTSCORE_CONFIG"] = str(folder / "nightscore.yaml")
    os.environ.setdefault("NIGHTSCORE_DEVICE", "cpu")
    (folder / "nightscore.yaml").write_text(_CONFIGURATION, encoding="utf-8")
    settings.cache_clear()
    services = LocalStack(folder / "stack")
    try:
        services.up(("postgres", "s3", "mlflow"))
        settings.cache_clear()
        yield Nights(_trained(folder))
    finally:
        services.down()


def _trained(folder: Path) -> Path:
    """Train a champion on sample images; returns their folder."""
    from ml.data import dataset, samples
    from ml.retrain import steps as retrain

    written = samples.write(folder / "samples").datasets["spill"]
    dataset.import_(written, "spill", storage=configuration().storage)
    if not retrain.retrain(MODEL)["promoted"]:
        raise SystemExit("The version did not pass its gate.")
    return written


def _lines(nights: Nights) -> dict[str, Callable[[], Spent]]:
    empty = next(_DATES)
    return {
        "import mlflow": _import,
        "night without new images": lambda: _night(empty),
        f"{IMAGES} images, new version, form fetched": lambda: _never_used(nights),
        f"{IMAGES} images, version used before": lambda: _used_before(nights),
        f"{IMAGES} images, new version, converted here": lambda: _converted_here(nights),
    }


def _measure(lines: dict[str, Callable[[], Spent]], turns: int) -> dict[str, list[Spent]]:
    spent: dict[str, list[Spent]] = {name: [] for name in lines}
    for turn in range(turns + 1):
        for name, measure in lines.items():
            found = measure()
            if turn:  # the first is for the system's cache of files
                spent[name].append(found)
    return spent


# With which line each is compared, by their numbers.
_BASELINES = {1: 0, 2: 4, 3: 4}


def _table(spent: dict[str, list[Spent]]) -> list[dict[str, Any]]:
    """Medians, the quickest turn, and how many times as long the baseline took."""
    names = list(spent)
    medians = [statistics.median(one.seconds for one in spent[name]) for name in names]
    return [
        {
            "line": name,
            "seconds": round(medians[number], 2),
            "quickest": round(min(one.seconds for one in spent[name]), 2),
            "cpu_seconds": round(statistics.median(one.cpu_seconds for one in spent[name]), 2),
            "peak_mb": round(max(one.peak_mb for one in spent[name])),
            "baseline": names[_BASELINES[number]] if number in _BASELINES else None,
            "ratio": round(medians[_BASELINES[number]] / medians[number], 1)
            if number in _BASELINES
            else None,
        }
        for number, name in enumerate(names)
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    print("| | s | quickest | CPU-s | peak MB | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        ratio = f"{row['ratio']} ({row['baseline']})" if row["ratio"] else ""
        print(
            f"| {row['line']} | {row['seconds']} | {row['quickest']} | {row['cpu_seconds']} | "
            f"{row['peak_mb']} | {ratio} |"
        )


def main() -> None:
    """Measure the commands in turns and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring.startup", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--turns", type=int, default=5, help="how often each line is measured")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    temporary = tempfile.TemporaryDirectory(prefix="nightscore-")
    with temporary as folder, stack(Path(folder)) as nights:
        spent = _measure(_lines(nights), arguments.turns)
    rows = _table(spent)
    _print(rows)
    if arguments.json:
        raw = {name: [asdict(one) for one in turns] for name, turns in spent.items()}
        document = {"machine": machine.describe("cpu"), "rows": rows, "turns": raw}
        arguments.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
