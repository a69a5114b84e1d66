"""Debian's programs for other tests, without installing anything."""

import subprocess

from tests.support import debian


def test_a_program_of_a_package_runs_although_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "FOLDER", tmp_path / "debian")
    hello = debian.program("hello", "hello", unpack=True)
    assert hello.path.is_relative_to(tmp_path)
    done = subprocess.run([hello.path], env=hello.environment, capture_output=True, text=True)
    assert done.stdout == "Hello, world!\n"


def test_a_program_of_path_is_taken_as_it_is():
    assert debian.program("true", "no-such-package").environment == {}
