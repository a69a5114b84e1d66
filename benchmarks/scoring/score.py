"""How fast images are scored: Nightscore's engine, other ways to do the same, and each stage.

All fetch the same images from the same local S3 server, run the same exported program and store one
row per image in the same local Postgres; both servers are started for the purpose and stopped
afterwards. Each pass is a process of its own. Getting ready (imports, loading the model, the
discovery, Ray's start, a warm-up) is not timed. Every turn takes every contender once, in a
rotated order, and then the stages; medians count. Every pass must leave a row for each image.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from benchmarks import machine
from benchmarks.errors import ContenderError
from benchmarks.scoring import report, workloads
from benchmarks.scoring.contender import Job
from benchmarks.scoring.nightscore import load_program
from benchmarks.scoring.report import OURS
from benchmarks.scoring.runner import LONGEST_S, Pass, run_passes
from benchmarks.scoring.workloads import WORKLOADS, Workload
from ml.program.device import select_device
from ml.program.program_file import export
from ml.settings import settings
from ml.stack.local import LocalStack
from ml.storage.object_store import split_uri
from ml.storage.upload import upload

# Nightscore in each precision: its contenders, of which the first one is what others are compared
# with.
PRECISIONS = {OURS: "float32", f"{OURS}_tf32": "tf32", f"{OURS}_bfloat16": "bfloat16"}
CONTENDERS = {
    **dict.fromkeys(PRECISIONS, "benchmarks.scoring.nightscore"),
    "per_image_script": "benchmarks.peers.per_image_script",
    "dataloader_orm": "benchmarks.peers.dataloader_orm",
    "dataloader_copy": "benchmarks.peers.dataloader_copy",
    "daft": "benchmarks.peers.daft_pipeline",
    "ray_data": "benchmarks.peers.ray_data",
}
STAGES = ("list", "fetch", "decode_resize", "host_to_device", "forward", "write")
# Left out unless `--only` names them.
_ON_REQUEST = tuple(PRECISIONS)[1:]
_NEEDS = {"daft": "daft", "ray_data": "ray"}
_SCHEMA = "benchmark"
_LONGEST_NOTE = 2000
# More turns than anybody measures: versions of two precisions must not meet.
_TURNS_OF_A_PRECISION = 1000
_COLUMNS = "uri text PRIMARY KEY, predicted_class text, score real, flagged boolean"
_OURS_AS_THEIRS = """
INSERT INTO {table}
SELECT uri, predicted_class, coalesce(score, confidence), flagged
FROM nightscore.prediction JOIN nightscore.image USING (night, image_id)
WHERE model = %s AND version = %s
"""
_DIFFERENCES = """
SELECT count(*) FILTER (WHERE ours.predicted_class <> theirs.predicted_class),
    count(*) FILTER (WHERE ours.flagged <> theirs.flagged),
    max(abs(ours.score - theirs.score))
FROM {ours} AS ours JOIN {theirs} AS theirs USING (uri)
"""


@dataclass
class Bench:
    """A workload in a running stack, and what its passes took so far."""

    job: Job
    folder: Path
    servers: Sequence[psutil.Process]
    contenders: Sequence[str]
    with_stages: bool
    keeps_going: bool = False
    longest: float = LONGEST_S
    failed: dict[str, str] = field(default_factory=dict)
    passes: dict[str, list[Pass]] = field(default_factory=dict)
    stages: dict[str, list[Pass]] = field(default_factory=dict)
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    flagged: int = 0

    def turn(self, number: int) -> None:
        """Every contender once, beginning with another one each turn, then every stage."""
        first = (number - 1) % max(len(self.contenders), 1)
        for name in [*self.contenders[first:], *self.contenders[:first]]:
            version = number + _TURNS_OF_A_PRECISION * list(CONTENDERS).index(name)
            job = replace(
                self.job,
                turn=number,
                version=version,
                precision=PRECISIONS.get(name, "float32"),
                table=f"{_SCHEMA}.{name}",
            )
            self._make_table(job.table)
            with self._failures_of(name):
                found = self._run(name, job)
                self._check_rows(name, job)
                self.passes.setdefault(name, []).append(found)
                _say(f"turn {number}: {name} {found.rate:,.0f} images/s")
        if number == 1:
            self._compare()
        if self.with_stages:
            with self._failures_of("stages"):
                self._measure_stages(replace(self.job, turn=number))

    @contextmanager
    def _failures_of(self, name: str) -> Iterator[None]:
        """Where it is to keep going, note that something failed instead of ending with it."""
        try:
            yield
        except ContenderError as error:
            if not self.keeps_going:
                raise
            self.failed[name] = str(error)[-_LONGEST_NOTE:]
            _say(f"{name} failed: {self.failed[name]}")

    def _measure_stages(self, job: Job) -> None:
        """Every stage, one after the other in one process, which imports and loads but once."""
        names = [name for name in STAGES if name != "host_to_device" or job.device == "cuda"]
        path = self._written(f"stages-{job.workload}-{job.turn}", job)
        arguments = ["benchmarks.scoring.stages", *names]
        passes = self._passes(arguments, path, len(names))
        for name, found in zip(names, passes, strict=True):
            _say(f"turn {job.turn}: {name} alone {found.rate:,.0f} images/s")
            self.stages.setdefault(name, []).append(found)

    def _run(self, name: str, job: Job) -> Pass:
        path = self._written(f"{name}-{job.workload}-{job.turn}", job)
        return self._passes([CONTENDERS[name]], path, 1)[0]

    def _passes(self, arguments: Sequence[str], path: Path, count: int) -> list[Pass]:
        return run_passes(
            arguments, path, self.servers, self.job.device, count=count, longest=self.longest
        )

    def _written(self, name: str, job: Job) -> Path:
        path = self.folder / f"{name}.json"
        job.write(path)
        return path

    def _make_table(self, table: str) -> None:
        with _cursor(self.job) as cursor:
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
            cursor.execute(f"DROP TABLE IF EXISTS {table}")
            cursor.execute(f"CREATE TABLE {table} ({_COLUMNS})")

    def _check_rows(self, name: str, job: Job) -> None:
        with _cursor(job) as cursor:
            if name in PRECISIONS:
                cursor.execute(_OURS_AS_THEIRS.format(table=job.table), (job.model, job.version))
            counted = f"SELECT count(*), count(DISTINCT uri), sum(flagged::int) FROM {job.table}"
            cursor.execute(counted)
            count, distinct, flagged = cursor.fetchone()
            if not count == distinct == len(job.keys):
                raise ContenderError(f"{name} stored {count} rows for {len(job.keys)} images.")
            self.flagged = int(flagged)

    def _compare(self) -> None:
        """How the others' rows differ from Nightscore's."""
        if not self.passes.get(OURS):
            return
        ours = f"{_SCHEMA}.{OURS}"
        with _cursor(self.job) as cursor:
            for name in self.passes:
                if name != OURS:
                    cursor.execute(_DIFFERENCES.format(ours=ours, theirs=f"{_SCHEMA}.{name}"))
                    found = zip(
                        ("classes_differ", "flags_differ", "largest_score"),
                        cursor.fetchone(),
                        strict=True,
                    )
                    self.agreement[name] = dict(found)

    def document(self) -> dict[str, Any]:
        """Rows, stages, efficiency and agreement, as they go into the JSON file."""
        known = [name for name in self.contenders if self.passes.get(name)]
        rows = [report.row(name, self.passes[name]) for name in known]
        stages = {name: report.stage(passes) for name, passes in self.stages.items()}
        bound = report.bound(stages, self.job.device, self.job.cores) if stages else None
        ours = next((row["images_per_second"] for row in rows if row["name"] == OURS), None)
        return {
            "rows": rows,
            "stages": stages,
            "efficiency": round(ours["median"] / bound, 3) if bound and ours else None,
            "bound": round(bound, 1) if bound else None,
            "agreement": self.agreement,
            "flagged": self.flagged,
            "failed": self.failed,
        }


@contextmanager
def _cursor(job: Job) -> Iterator[Any]:
    """A cursor of a connection of its own, committed at the end."""
    opened = closing(psycopg2.connect(job.database_url))
    with opened as connection, connection, connection.cursor() as cursor:
        yield cursor


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _stack(folder: Path) -> Iterator[list[psutil.Process]]:
    """Postgres and S3 in `folder`; yields their processes and always stops them."""
    for name in list(os.environ):
        # Settings of another stack must not lead the passes there.
        if name.startswith(("AWS_", "NIGHTSCORE_")) and name != "NIGHTSCORE_DEVICE":
            del os.environ[name]
    os.environ["NIGHTSCORE_HOME"] = str(folder / "stack")
    os.environ["NIGHTSCORE_CONFIG"] = str(folder / "nightscore.yaml")
    workloads.write_configuration(folder / "nightscore.yaml")
    settings.cache_clear()
    stack = LocalStack(folder / "stack")
    try:
        stack.up(("postgres", "s3"))
        yield [psutil.Process(found.pid) for found in stack.status() if found.pid is not None]
    finally:
        stack.down()


def _prepare(workload: Workload, contents: Sequence[bytes], folder: Path) -> Job:
    """Put the images into S3 and export the model; the job less its turn and table."""
    bucket, key = split_uri(workload.prefix)
    keys = tuple(f"{key}/{number:07}.jpg" for number in range(len(contents)))
    pairs = ((f"{bucket}/{k}", content) for k, content in zip(keys, contents, strict=True))
    upload(pairs, [], lambda done: None)
    network = workloads.network(workload)
    threshold = workloads.threshold(workload, network, list(contents))
    program = folder / f"{workload.name}.pt2"
    export(network, program, workload.input_size)
    current = settings()
    job = Job(
        workload=workload.name,
        model=workload.model,
        night=workloads.NIGHT,
        turn=0,
        version=0,
        precision="float32",
        endpoint=current.s3_endpoint,
        key_id=current.s3_access_key,
        secret=current.s3_secret_key.get_secret_value(),
        region=current.s3_region,
        bucket=bucket.removeprefix("s3://"),
        keys=keys,
        program=str(program),
        task=workload.task,
        classes=workload.classes,
        input_size=workload.input_size,
        threshold=threshold,
        database_url=current.require_owner_url().replace("+psycopg2", ""),
        table="",
        cores=machine.cores(),
        device=select_device(),
    )
    # The engine converts a program once for a machine; it is no work of the passes.
    load_program(job, version=1)
    return job


def _measure(
    workload: Workload,
    arguments: argparse.Namespace,
    folder: Path,
    servers: Sequence[psutil.Process],
) -> dict[str, Any]:
    chosen = dict(arguments.images)
    count = chosen.get(workload.name) or chosen.get("") or workload.images
    _say(f"{workload.name}: preparing {count:,} images")
    contents, source = workloads.images(workload, count, arguments.data)
    job = _prepare(workload, contents, folder)
    bench = Bench(
        job,
        folder,
        servers,
        _contenders(arguments.only),
        not arguments.no_stages,
        arguments.keep_going,
        arguments.longest,
    )
    for number in range(1, arguments.turns + 1):
        bench.turn(number)
    return {
        "workload": workload.name,
        "machine": machine.describe(job.device),
        **bench.document(),
        "images": count,
        "source": source,
        "mean_kb": round(sum(map(len, contents)) / count / 1000, 2),
        "turns": arguments.turns,
        "date": date.today().isoformat(),
    }


def _contenders(only: Sequence[str] | None) -> list[str]:
    """The contenders to run; one whose package is missing is left out, and said so."""
    default = [name for name in CONTENDERS if name not in _ON_REQUEST]
    chosen = [name for name in CONTENDERS if name in (only or default)]
    missing = [n for n in chosen if n in _NEEDS and find_spec(_NEEDS[n]) is None]
    for name in missing:
        _say(f"{name} is left out: the package {_NEEDS[name]} is not installed.")
    return [name for name in chosen if name not in missing]


def _save(document: Mapping[str, Any], path: Path, several: bool) -> None:
    if several:
        path = path.with_name(f"{path.stem}-{document['workload']}{path.suffix}")
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _count(text: str) -> tuple[str, int]:
    """N or NAME=N, as a workload's name (empty: of any) and a number."""
    name, _, number = text.rpartition("=")
    if name and name not in WORKLOADS:
        raise argparse.ArgumentTypeError(f"no workload {name!r}; known: {', '.join(WORKLOADS)}")
    return name, int(number)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = ", ".join(f"{one.name} {one.images}" for one in WORKLOADS.values())
    parser.add_argument(
        "--workload",
        action="append",
        choices=WORKLOADS,
        help="what to score, default spill; can be given several times. photos: drawn JPEGs of "
        "1920 x 1080; imagenet: drawn JPEGs of 500 x 375, ResNet-18",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        type=_count,
        default=[],
        metavar="N",
        help=f"how many, or of one workload: NAME=N; default: {defaults}",
    )
    parser.add_argument("--turns", type=int, default=5, help="default 5")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="holds spill.tar and cifar10.tar or folders of that name; default: "
        "../shared/datasets beside the checkout where it exists, else images are drawn",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the figures there; with several workloads to FILE with -WORKLOAD in its name",
    )
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS)
    )
    parser.add_argument("--no-stages", action="store_true", help="leave the single stages out")
    parser.add_argument(
        "--keep-going", action="store_true", help="name a contender that fails, and go on without"
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=LONGEST_S,
        metavar="S",
        help="seconds that a contender may prepare itself, or score; default an hour",
    )
    return parser.parse_args()


def main() -> None:
    """Measure each workload and print its tables."""
    arguments = _arguments()
    names = list(dict.fromkeys(arguments.workload or ["spill"]))
    # Ended from outside, it stops what it started all the same.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="nightscore-bench-") as folder:
        Path(folder).chmod(0o700)
        with _stack(Path(folder)) as servers:
            try:
                for name in names:
                    document = _measure(WORKLOADS[name], arguments, Path(folder), servers)
                    print("\n" + "\n".join(report.lines(document)), flush=True)
                    if arguments.json:
                        _save(document, arguments.json, several=len(names) > 1)
            except ContenderError as error:
                raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
