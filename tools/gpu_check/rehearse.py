"""The steps as on the machine with a GPU, on the CPU of this one.

They run in a copy of the tree as it would travel, with the wheels for this Python, with a Python
that has what the GPU's machine has (torch in its version) and nothing of .venv, and without a
network. What this shows is that the scripts work; the figures say nothing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.gpu_check import layout, prepare
from tools.gpu_check.steps import CONTINUE

_MACHINE = layout.FOLDER / "machine"
# A step is cut off once, early, to see it continued.
_CUT_OFF_AFTER_S = 60.0
_LONGEST_S = 900.0
_MOST_RUNS = 4
# Loopback is down in a new network namespace.
_WITHOUT_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def main(data: Path | None, steps: Sequence[str]) -> int:
    """Run the steps; returns 0 when each came to its end and nothing failed."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if prepare.main(python, data):
        return 1
    machine = _machine()
    with tempfile.TemporaryDirectory(prefix="nightscore-rehearsal-") as folder:
        tree = Path(folder) / "tree"
        _copy_tree(tree, layout.tag(python))
        try:
            statuses = {step: _step(step, tree, machine, Path(folder)) for step in steps}
        finally:
            # It may lie elsewhere (`environment.make`), and then the tree has a link to it.
            made = layout.environment(layout.tag(python)).relative_to(layout.REPOSITORY)
            shutil.rmtree((tree / made).resolve(), ignore_errors=True)
        results = layout.FOLDER / "rehearsal"
        shutil.rmtree(results, ignore_errors=True)
        shutil.copytree(Path(folder) / "out", results)
    for step, status in statuses.items():
        prepare.say(f"{step}: {'passed' if status == 0 else f'exit status {status}'}")
    prepare.say(f"JSON and logs: {layout.relative(results)}")
    return max(statuses.values())


def _machine() -> Path:
    """A Python with the packages that the machine with the GPU has; made once."""
    python = _MACHINE / "bin" / "python"
    versions = layout.MACHINE_VERSIONS
    requirements = [
        f"{name}=={versions[name]}" if name in versions else name for name in layout.PROVIDED
    ]
    if not python.exists():
        venv = [str(prepare.UV), "venv", "--quiet", "--python", sys.executable, str(_MACHINE)]
        subprocess.run(venv, check=True)
    install = [str(prepare.UV), "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, "pip", *requirements], check=True)
    return python


def _copy_tree(tree: Path, tag: str) -> None:
    for path in prepare.tree_files():
        target = tree / path.relative_to(layout.REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for folder in (layout.wheels(tag), layout.DATA):
        shutil.copytree(folder, tree / folder.relative_to(layout.REPOSITORY))


def _step(step: str, tree: Path, machine: Path, folder: Path) -> int:
    """The step's exit status, run again as long as it is cut off."""
    seconds, status = _CUT_OFF_AFTER_S, CONTINUE
    for number in range(_MOST_RUNS):
        # Each run gets an empty folder, as on a machine that gives back what is written there.
        out = folder / "out" / f"{step}-run-{number + 1}"
        command = [
            *_without_network(),
            str(machine), "-m", "tools.gpu_check", "run", step, str(out),
            "--seconds", str(seconds),
        ]  # fmt: skip
        status = subprocess.run(command, cwd=tree, env=_variables(folder)).returncode
        if status != CONTINUE:
            break
        prepare.say(f"{step} was cut off after {seconds:.0f} s; it is continued")
        seconds = _LONGEST_S
    return status


def _without_network() -> Sequence[str]:
    if os.getuid() == 0 and shutil.which("unshare") and shutil.which("ip"):
        return _WITHOUT_NETWORK
    prepare.say("The network stays on: only root can take it away here.")
    return ()


def _variables(folder: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "NIGHTSCORE_GPU_REHEARSAL": "1",
    }
