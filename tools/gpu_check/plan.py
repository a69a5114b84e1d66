"""Which wheels are carried, and how they are divided into transfers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tools.gpu_check.layout import DAFT, MACHINE_PYTHON, SERVERS, SOURCES
from tools.locks import REQUIREMENTS

LOCK = REQUIREMENTS / "gpu-check.txt"
REQUESTED = REQUIREMENTS / "gpu-check.in"
MIB = 2**20
# Of a transfer, the working tree included.
LARGEST_TRANSFER = 60 * MIB
# glibc versions whose wheels the machine's (2.39) takes, newest first.
_GLIBC = range(39, 4, -1)


class PlanError(Exception):
    """What was to be carried cannot be."""


@dataclass(frozen=True)
class Piece:
    """A file to carry: its name and its bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Transfer:
    """Files that go together, into a folder `name`."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """The sum of the files' bytes."""
        return _bytes(self.pieces)


def platforms() -> list[str]:
    """Tags of platforms, as pip is asked for them: it matches each by name."""
    return [
        *(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC),
        *(f"manylinux{year}_x86_64" for year in (2014, 2010, 1)),
    ]


def requirements(lock: Path = LOCK, python: str = MACHINE_PYTHON) -> list[str]:
    """List the lines of a lock file that hold on Linux for a version of Python.

    They keep their hashes and lose their markers, which pip would judge by the Python it runs in.
    """
    return [line for line, _ in _chosen(lock, python)]


def by_form(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide lines of a lock file: those of wheels, and those of packages that are source only."""
    starts = tuple(f"{name}==" for name in SOURCES)
    sources = [line for line in lines if line.startswith(starts)]
    return [line for line in lines if line not in sources], sources


def names(lock: Path = LOCK, python: str = MACHINE_PYTHON) -> dict[str, str]:
    """Name and version of each package that is carried."""
    return dict(pin for _, pin in _chosen(lock, python))


def _chosen(lock: Path, python: str) -> Iterator[tuple[str, tuple[str, str]]]:
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.3",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for line in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text, *hashes = line.partition("#")[0].split("--hash=")
        if not text.strip():
            continue
        found = Requirement(text)
        if found.marker is None or found.marker.evaluate(machine):
            pinned = f"{found.name}{found.specifier}"
            exact = next(iter(found.specifier)).version
            joined = " ".join([pinned, *(f"--hash={each.strip()}" for each in hashes)])
            yield joined, (canonicalize_name(found.name), exact)


def check_wheels(files: Sequence[str], pinned: Mapping[str, str]) -> None:
    """Check that the wheels are those that are pinned, each once.

    Args:
        files: names of the wheels' files.
        pinned: name → version.

    Raises:
        PlanError: a wheel is missing, there twice, or not pinned.
    """
    carried = {}
    for name in files:
        package, version, _, _ = parse_wheel_filename(name)
        if package in carried:
            raise PlanError(f"There are two wheels of {package}.")
        carried[package] = str(version)
    if lacking := sorted(set(pinned.items()) - set(carried.items())):
        raise PlanError(f"Not downloaded: {', '.join('=='.join(pin) for pin in lacking)}.")
    if surplus := sorted(set(carried.items()) - set(pinned.items())):
        raise PlanError(f"Not asked for: {', '.join('=='.join(pin) for pin in surplus)}.")


def transfers(groups: Mapping[str, Sequence[Piece]], tree: int) -> list[Transfer]:
    """The transfers, one for each group; a group that is too large is divided, largest files first.

    Args:
        groups: name → files.
        tree: bytes of the working tree, which is sent with each.

    Raises:
        PlanError: a file, or the tree, is too large to travel.
    """
    capacity = LARGEST_TRANSFER - tree
    planned = []
    for group, pieces in groups.items():
        parts = _divide(pieces, capacity)
        for number, part in enumerate(parts, start=1):
            name = group if len(parts) == 1 else f"{group}-{number}"
            planned.append(Transfer(name, tuple(sorted(part, key=lambda piece: piece.name))))
    return planned


def _divide(pieces: Sequence[Piece], capacity: int) -> list[list[Piece]]:
    """First fit, largest first."""
    parts: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.bytes):
        if piece.bytes > capacity:
            raise PlanError(
                f"{piece.name} has {piece.bytes / MIB:.1f} MiB; {capacity / MIB:.1f} MiB are left "
                "beside the working tree."
            )
        part = next((part for part in parts if _bytes(part) + piece.bytes <= capacity), None)
        if part is None:
            parts.append([piece])
        else:
            part.append(piece)
    return parts


def _bytes(pieces: Sequence[Piece]) -> int:
    return sum(piece.bytes for piece in pieces)


def groups(wheels: Sequence[Piece]) -> dict[str, list[Piece]]:
    """`base`, which each step needs; `daft` and `servers`, which `score` needs besides."""
    found: dict[str, list[Piece]] = {"base": [], "daft": [], "servers": []}
    for wheel in wheels:
        package = parse_wheel_filename(wheel.name)[0]
        group = "daft" if package == DAFT else "servers" if package in SERVERS else "base"
        found[group].append(wheel)
    return found


def calls(transfers: Sequence[Transfer], tree: int) -> list[list[Transfer]]:
    """What is carried by each call: transfers that follow each other go together if they fit."""
    joined: list[list[Transfer]] = []
    for transfer in transfers:
        size = tree + transfer.bytes
        if joined and size + sum(one.bytes for one in joined[-1]) <= LARGEST_TRANSFER:
            joined[-1].append(transfer)
        else:
            joined.append([transfer])
    return joined
