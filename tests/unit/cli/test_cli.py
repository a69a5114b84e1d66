"""The command line: help everywhere, errors in a line, JSON alone on standard output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml import cli

REPOSITORY = Path(__file__).parents[3]


def _commands() -> list[list[str]]:
    def walk(command, path):
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*path, name])

    return list(walk(cli.command(), []))


def _run(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "nightscore", *arguments],
        env=os.environ | {"NIGHTSCORE_HOME": str(home)} | variables,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("path", _commands(), ids=" ".join)
def test_every_command_and_option_has_a_help(path):
    command = cli.command()
    for name in path:
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        assert parameter.help or parameter.name in ("help", "install_completion", "show_completion")


def test_the_commands_of_the_design_are_there():
    names = {path[0] for path in _commands() if path}
    assert names >= {
        "run", "up", "down", "status", "doctor", "dataset", "ingest", "train", "evaluate",
        "promote", "rollback", "score", "report", "sql", "migrate",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sql", "SELECT 1"], "NIGHTSCORE_ANALYST_URL is not set"),
        (["score", "spill"], "NIGHTSCORE_DATABASE_URL is not set"),
        (["score", "nowhere"], "Known: cifar10, spill"),
        (["train", "nothing"], "Known: cifar10-classifier, spill-anomaly"),
        (["dataset", "download", "imagenet"], "Known: cifar10"),
        (["up", "--only", "redis"], "Known: postgres, s3, mlflow, airflow"),
        (["step", "train", "nonsense"], "is not JSON"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_a_line_that_says_what_to_do(tmp_path, arguments, message):
    done = _run(*arguments, home=tmp_path / "none")
    assert done.returncode == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_verbose_may_stand_before_or_after_the_command(tmp_path):
    for arguments in (["--verbose", "status"], ["status", "--verbose"]):
        assert _run(*arguments, home=tmp_path / "none").returncode == 3
    done = _run("dataset", "download", "nothing", "--verbose", home=tmp_path)
    assert done.returncode == 1
    assert "There is no download" in done.stderr


def test_misuse_exits_with_2_and_says_what_is_missing(tmp_path):
    for arguments in (["ingest", "."], ["score", "spill", "--date", "tomorrow"], ["dance"]):
        done = _run(*arguments, home=tmp_path)
        assert done.returncode == 2, arguments
        assert done.stderr


def test_without_a_stack_status_says_so(tmp_path):
    done = _run("status", home=tmp_path / "none")
    assert done.returncode == 3
    assert "nightscore up" in done.stderr
    done = _run("down", home=tmp_path / "none")
    assert done.returncode == 0
    assert not (tmp_path / "none").exists()
