"""Fill the git-ignored folder that is carried to the machine with the GPU, and check it."""

import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.gpu_check import layout, plan
from tools.gpu_check.plan import MIB, Piece, PlanError, Transfer

UV = Path(sys.executable).parent / "uv"
_DATASETS_BESIDE = layout.REPOSITORY.parent / "shared" / "datasets"


def main(python: str, data: Path | None) -> int:
    """Wheels, offline resolution and data; prints what to carry and to run."""
    try:
        tree = tree_bytes()
        carried = wheels(python, tree)
        resolve(python)
        packed = plan.transfers({"data": pack(data)}, tree)
    except PlanError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    calls = plan.calls([*carried, *packed], tree)
    say("\n".join(_instructions(python, tree, calls)))
    return 0


def tree_bytes() -> int:
    """Bytes of the working tree as it travels."""
    return sum(path.lstat().st_size for path in tree_files())


def tree_files() -> list[Path]:
    """The files of the working tree that travel: tracked ones, and new ones that git sees."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=layout.REPOSITORY, capture_output=True, check=True,
    )  # fmt: skip
    paths = [layout.REPOSITORY / name.decode() for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.exists()]


# --- wheels ------------------------------------------------------------------------------------


def wheels(python: str, tree: int) -> list[Transfer]:
    """Download the wheels for a version of Python and lay them out by transfer.

    Raises:
        PlanError: some cannot be had, or do not fit.
    """
    folder = layout.wheels(layout.tag(python))
    pinned = plan.names(python=python)
    with tempfile.TemporaryDirectory(prefix="nightscore-wheels-") as scratch:
        found = Path(scratch)
        if not _copy_cached(folder, found, pinned):
            download(python, found)
            plan.check_wheels([path.name for path in found.glob("*.whl")], pinned)
        pieces = [Piece(path.name, path.stat().st_size) for path in found.glob("*.whl")]
        transfers = plan.transfers(plan.groups(pieces), tree)
        shutil.rmtree(folder, ignore_errors=True)
        for transfer in transfers:
            (folder / transfer.name).mkdir(parents=True)
            for piece in transfer.pieces:
                shutil.move(found / piece.name, folder / transfer.name / piece.name)
    return transfers


def _copy_cached(folder: Path, scratch: Path, pinned: dict[str, str]) -> bool:
    """Copy what was downloaded before to `scratch`; whether it is exactly what is wanted."""
    paths = list(folder.glob("*/*.whl"))
    try:
        plan.check_wheels([path.name for path in paths], pinned)
    except PlanError:
        return False
    for path in paths:
        shutil.copy(path, scratch)
    return True


def download(python: str, folder: Path) -> None:
    """Fetch what requirements/gpu-check.txt pins, each by its hash, as wheels."""
    wheels, sources = plan.by_form(plan.requirements(python=python))
    _pip(
        wheels, folder, "download", "--only-binary=:all:", "--python-version", python,
        "--implementation", "cp", "--abi", layout.tag(python), "--abi", "abi3", "--abi", "none",
        *(part for name in plan.platforms() for part in ("--platform", name)),
        "--dest", str(folder),
    )  # fmt: skip
    # Without isolation setuptools is the locked one, and nothing else is fetched to build with.
    build = ("--no-binary=:all:", "--no-build-isolation", "--wheel-dir", str(folder))
    _pip(sources, folder, "wheel", *build)


def _pip(lines: Sequence[str], folder: Path, command: str, *options: str) -> None:
    """`pip COMMAND` for lines of a lock file, whose hashes are checked."""
    listed = folder / "requirements.txt"
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", command]
    pip += ["--require-hashes", "--no-deps", *options, "--requirement", str(listed)]
    done = subprocess.run(pip, capture_output=True, text=True)
    listed.unlink()
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise PlanError("The wheels cannot be downloaded: " + "\n".join(lines[-5:]))


def resolve(python: str) -> None:
    """Check that the folder is enough, without a network, beside what the machine has.

    What the machine has is taken for given: whether its versions do is known there only.

    Raises:
        PlanError: a package is missing; the message names it.
    """
    folders = sorted(path for path in layout.wheels(layout.tag(python)).iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory(prefix="nightscore-resolve-") as scratch:
        given = Path(scratch) / "given.txt"
        names = (*layout.PROVIDED, *layout.WITH_PYTEST)
        given.write_text("".join(f"{name} ; sys_platform == 'none'\n" for name in names))
        command = [
            str(UV), "pip", "install", "--quiet", "--dry-run", "--offline", "--no-index",
            "--no-build", "--no-config", "--no-cache",
            *(part for folder in folders for part in ("--find-links", str(folder))),
            "--python-version", python, "--python-platform", "x86_64-manylinux_2_39",
            "--target", str(Path(scratch) / "target"), "--override", str(given),
            "--requirement", str(plan.REQUESTED),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise PlanError(f"The wheels do not resolve without a network: {done.stderr.strip()}")


# --- data --------------------------------------------------------------------------------------


def pack(data: Path | None) -> list[Piece]:
    """Put the data sets that are there into the folder `data`, each as one compressed tar.

    JPEGs of 32 x 32 pixels are mostly headers, the same in all, and tar adds 512 bytes or more to
    each: xz makes 93 MB of CIFAR-10 to 19.
    """
    layout.DATA.mkdir(parents=True, exist_ok=True)
    folder = data or _DATASETS_BESIDE
    for name in layout.DATASETS:
        sources = (folder / f"{name}.tar", folder / name)
        source = next((path for path in sources if path.exists()), None)
        packed = layout.DATA / f"{name}.tar.xz"
        if source is None:
            say(f"{name} is not in {folder.name}: it is replaced by synthetic images, and says so")
        elif not _is_fresh(packed, source):
            _pack(source, packed)
    return [Piece(path.name, path.stat().st_size) for path in layout.DATA.glob("*.tar.xz")]


def _is_fresh(packed: Path, source: Path) -> bool:
    return packed.exists() and packed.stat().st_mtime_ns == source.stat().st_mtime_ns


def _pack(source: Path, packed: Path) -> None:
    """Write `packed` whole or not at all, with the time of its source."""
    partial = packed.with_name(f"{packed.name}.partial")
    if source.is_dir():
        with tarfile.open(partial, "w:xz") as tar:
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                tar.add(path, str(path.relative_to(source.parent)), recursive=False)
    else:
        with source.open("rb") as plain, lzma.open(partial, "wb", preset=6) as file:
            shutil.copyfileobj(plain, file, 2**20)
    time_ns = source.stat().st_mtime_ns
    os.utime(partial, ns=(time_ns, time_ns))
    partial.replace(packed)


# --- what to do with it ------------------------------------------------------------------------


def _instructions(python: str, tree: int, calls: Sequence[Sequence[Transfer]]) -> Iterator[str]:
    yield f"Working tree: {tree / MIB:.1f} MiB. With it travel, call by call:"
    for call in calls:
        size = (sum(transfer.bytes for transfer in call) + tree) / MIB
        places = " ".join(_folder_of(transfer, python) for transfer in call)
        yield f"  {places:66}{size:5.1f} MiB with the tree"
    yield "The machine has: " + ", ".join(layout.PROVIDED)
    yield "There, in this order, each within four minutes (docs/gpu-check.md):"
    needs = {
        "tests": "base",
        "install": "daft",
        "score": "servers and data",
        "train": "nothing more",
    }
    for step, carried in needs.items():
        yield f"  python3 -m tools.gpu_check run {step} OUT".ljust(50) + f"carries {carried}"


def _folder_of(transfer: Transfer, python: str) -> str:
    """The folder of a transfer, from the root of the tree."""
    if transfer.name.startswith("data"):
        return layout.relative(layout.DATA)
    return f"{layout.relative(layout.wheels(layout.tag(python)))}/{transfer.name}"


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
