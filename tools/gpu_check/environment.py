"""A virtual environment on the machine: its own packages, and the wheels that were carried.

`venv --system-site-packages` does not do, as the machine's Python may be in a virtual environment
itself: that option would show the packages of the Python below it.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.util import find_spec
from pathlib import Path

from tools.gpu_check import layout

_MARK = "installed.json"


class NotReadyError(Exception):
    """The machine lacks something; the message says what."""


def make() -> Path:
    """The environment's Python; makes it, or adds what has been carried since."""
    tag = layout.tag()
    if lacking := [name for name, module in layout.PROVIDED.items() if find_spec(module) is None]:
        raise NotReadyError(f"The machine's Python lacks {', '.join(lacking)}.")
    wheels = sorted(layout.wheels(tag).glob("*/*.whl"))
    if not wheels:
        raise NotReadyError(
            f"There are no wheels in {layout.relative(layout.wheels(tag))}. Prepare them with "
            f"`make gpu-check` where there is a network, and carry that folder."
        )
    folder = _create_folder(layout.environment(tag))
    python = folder / "bin" / "python"
    if not python.exists():
        venv.EnvBuilder(with_pip=False, symlinks=True, clear=True).create(folder)
        _show_the_machine_s_packages(folder)
    mark = folder / _MARK
    known = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else {}
    fresh = [path for path in wheels if known.get(path.name) != _digest(path)]
    if fresh:
        _install(python, fresh)
        known |= {path.name: _digest(path) for path in fresh}
        mark.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return python


def _create_folder(folder: Path) -> Path:
    """Where the environment lies: at `folder`, or where that is a link to.

    For root PostgreSQL runs as `nobody`, and looks with access(2) for its programs, which no
    capability helps: that user must be able to pass through all folders above them.
    """
    if os.getuid() != 0 or folder.exists() or is_passable(folder):
        return folder.resolve()
    place = Path(tempfile.mkdtemp(prefix="nightscore-environment-"))
    place.chmod(0o755)
    folder.unlink(missing_ok=True)  # a link to what is gone
    folder.symlink_to(place)
    return place


def is_passable(path: Path) -> bool:
    """Whether every user can pass through the folders above a path."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.absolute().parents)


def has(python: Path, module: str) -> bool:
    """Whether the environment has a module."""
    code = f"import sys; from importlib.util import find_spec; sys.exit(not find_spec({module!r}))"
    return subprocess.run([python, "-c", code], cwd=layout.REPOSITORY).returncode == 0


def _show_the_machine_s_packages(folder: Path) -> None:
    """Let the environment see what this Python sees, after its own packages."""
    own = sysconfig.get_path("purelib", "venv", vars={"base": str(folder)})
    places = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    lines = [f"import site; site.addsitedir({path!r})" for path in places]
    (Path(own) / "machine.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _install(python: Path, wheels: list[Path]) -> None:
    if find_spec("pip") is None:
        raise NotReadyError("The machine's Python has no pip, which installs the wheels.")
    command = [
        sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check",
        "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir",
        *map(str, wheels),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotReadyError(f"The wheels cannot be installed: {done.stdout}{done.stderr}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
