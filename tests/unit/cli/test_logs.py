"""The log of a command: Nightscore's own lines are shown, the libraries' go to a file."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOSTILE = "a\x1b[31mb\u202ec"
SPEAKS = f"""
import logging, sys, warnings
from pathlib import Path
from ml.cli import logs
logs.start(Path(sys.argv[1]))
for function in sys.argv[2:]:
    getattr(logs, function)()
logging.getLogger("mlflow.system_metrics").info("a library's remark")
logging.getLogger("urllib3.connectionpool").warning("a library's warning")
warnings.warn("something is deprecated")
logging.getLogger("ml.training.train").info("epoch 1 of 2")
logging.getLogger("ml.timeouts").warning("{HOSTILE} is gone")
"""


def _speak(home: Path, *functions: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", SPEAKS, str(home), *functions],
        capture_output=True,
        text=True,
        check=True,
    ).stderr


def test_libraries_are_heard_in_the_file_only(tmp_path):
    assert _speak(tmp_path / "home") == "a\\x1b[31mb\\u202ec is gone\n"
    logged = (tmp_path / "home" / "logs" / "nightscore.log").read_text()
    for line in ("a library's remark", "a library's warning", "something is deprecated", "epoch 1"):
        assert line in logged


def test_a_command_that_works_here_shows_its_progress(tmp_path):
    assert _speak(tmp_path, "show_own_info").splitlines() == [
        "epoch 1 of 2",
        "a\\x1b[31mb\\u202ec is gone",
    ]


def test_verbose_shows_everything_and_who_said_it(tmp_path):
    stderr = _speak(tmp_path, "show_all")
    assert "mlflow.system_metrics: a library's remark" in stderr
    assert "urllib3.connectionpool: a library's warning" in stderr
    assert "something is deprecated" in stderr
    assert "ml.training.train: epoch 1 of 2" in stderr


def test_the_log_does_not_grow_without_end(tmp_path):
    from ml.cli.logs import _MAX_BYTES, FILE, _FileHandler

    log = _FileHandler(tmp_path / FILE, maxBytes=1000, backupCount=1, delay=True)
    for number in range(200):
        log.handle(logging.makeLogRecord({"msg": f"line {number}"}))
    log.close()
    files = list((tmp_path / "logs").iterdir())
    assert len(files) == 2
    assert all(file.stat().st_size <= 1000 for file in files)
    assert _MAX_BYTES <= 10_000_000


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_no_reason_to_fail(tmp_path):
    tmp_path.chmod(0o500)
    assert "is gone" in _speak(tmp_path / "home")
