"""The lock files of requirements/, read without regard to the platform."""

from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
REQUIREMENTS = REPOSITORY / "requirements"
LOCK = REQUIREMENTS / "lock.txt"


@dataclass(frozen=True, order=True)
class Pin:
    """One package at one version; a package is pinned twice where its markers differ."""

    name: str
    version: str
    hashes: tuple[str, ...]


def lock_files() -> list[Path]:
    """List the lock files."""
    return sorted(REQUIREMENTS.glob("*.txt"))


def pins(path: Path) -> list[Pin]:
    """List what a lock file pins, for all platforms and versions of Python.

    Raises:
        ValueError: a line that is no `name==version` (an option such as the URL of an index, a
            range).
    """
    found = []
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        requirement, *hashes = line.partition("#")[0].split(" --hash=")
        if not requirement.strip():
            continue
        parsed = Requirement(requirement)
        exact = [each.version for each in parsed.specifier if each.operator == "=="]
        if len(exact) != 1 or len(parsed.specifier) != 1:
            raise ValueError(f"{path.name} does not pin one version: {requirement.strip()}")
        found.append(
            Pin(canonicalize_name(parsed.name), exact[0], tuple(each.strip() for each in hashes))
        )
    return found
