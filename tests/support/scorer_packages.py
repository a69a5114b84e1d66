"""Runs `nightscore` as in a scorer's image: with the packages of requirements/scorer.txt alone.

`python -m tests.support.scorer_packages score line --date 2033-03-01 --json`
"""

import re
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

_LOCK = Path(__file__).parents[2] / "requirements" / "scorer.txt"


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def hidden_packages() -> set[str]:
    """The importable packages of this environment that no distribution of the lock file has."""
    locked = {_normalized(name) for name in re.findall(r"^([\w.-]+)==", _LOCK.read_text(), re.M)}
    locked.add("nightscore")
    return {
        package
        for package, distributions in packages_distributions().items()
        if not any(_normalized(name) in locked for name in distributions)
    }


class _VisiblePackages(PathFinder):
    hidden = hidden_packages()

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in cls.hidden:
            return None
        return super().find_spec(fullname, path, target)


def hide_packages() -> None:
    """Let this process import none of the other packages of its environment."""
    sys.meta_path[sys.meta_path.index(PathFinder)] = _VisiblePackages


if __name__ == "__main__":
    hide_packages()
    from ml.cli import main

    sys.argv[0] = "nightscore"
    main()
