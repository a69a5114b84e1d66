"""Programs of Debian for the tests: those on PATH, else from Debian's packages, without root.

A package is fetched once into `build/debian/`, which git ignores, and unpacked there. It is not
installed: nothing of the machine changes.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "build" / "debian"
# Where packages put programs; PostgreSQL's are in a folder of their own.
_PROGRAMS = ("usr/bin", "usr/sbin", "bin", "sbin", "usr/lib/postgresql/*/bin")


@dataclass(frozen=True)
class Program:
    """A program that tests can run.

    Attributes:
        path: The program.
        environment: The variables that it needs to find its libraries, if it was unpacked.
    """

    path: Path
    environment: dict[str, str]


def program(name: str, *packages: str, unpack: bool = False) -> Program:
    """Find a program on PATH, or else in packages; skips the test where neither is possible.

    Args:
        name: The name of the program.
        packages: The package that has it, and those with the libraries that it needs.
        unpack: Whether to look into the packages even if it is on PATH.
    """
    if not unpack and (found := _on_path(name)):
        return Program(found, {})
    root = _unpacked(packages)
    for pattern in _PROGRAMS:
        for path in sorted(root.glob(f"{pattern}/{name}")):
            return Program(path, os.environ | {"LD_LIBRARY_PATH": _libraries(root)})
    raise AssertionError(f"{name} is in none of the packages {', '.join(packages)}")


def _on_path(name: str) -> Path | None:
    # Debian has PostgreSQL's server programs in no folder of PATH.
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
    found = shutil.which(name, path=os.pathsep.join(map(str, folders)))
    return Path(found) if found else None


def _libraries(root: Path) -> str:
    folders = {path.parent for path in root.rglob("*.so*") if path.is_file()}
    return os.pathsep.join(map(str, sorted(folders)))


def _unpacked(packages: Iterable[str]) -> Path:
    """The folder into which packages are unpacked, by whichever process needs them first."""
    root = FOLDER / "-".join(packages)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            unfinished = FOLDER / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            for archive in _download(packages):
                _run("dpkg", "-x", archive.name, unfinished, cwd=archive.parent)
            unfinished.rename(root)
    return root


def _download(packages: Iterable[str]) -> list[Path]:
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        pytest.skip("no apt-get here, which fetches Debian's packages")
    archives = FOLDER / "archives"
    shutil.rmtree(archives, ignore_errors=True)
    archives.mkdir()
    # The machine's lists of packages may be missing or old; root's cannot be renewed without root.
    own = [f"-oDir::State::lists={FOLDER}/lists", f"-oDir::Cache={FOLDER}/cache"]
    attempts = (["download"],), (["update"], ["download"])
    errors = ""
    for options, commands in zip(([], own), attempts, strict=True):
        for folder in ("lists/partial", "cache/archives/partial"):
            (FOLDER / folder).mkdir(parents=True, exist_ok=True)
        for command in commands:
            names = packages if command == ["download"] else []
            errors = _run("apt-get", "-qq", *options, *command, *names, cwd=archives, fails=True)
        if not errors:
            return sorted(archives.glob("*.deb"))
    pytest.skip(
        f"Debian's package {' '.join(packages)} cannot be fetched: {errors.splitlines()[-1]}"
    )


def _run(*command: str | Path, cwd: Path, fails: bool = False) -> str:
    """Run a command; returns what it says when it fails, and nothing when it succeeds."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert fails or done.returncode == 0, done.stderr
    return done.stderr.strip() or "failed" if done.returncode else ""
