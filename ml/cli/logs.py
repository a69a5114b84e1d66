"""What is logged while a command runs: Nightscore's own lines for people, libraries' for a file.

A library says in the same breath what a developer wants to know and what nobody can act on, so all
of it goes to `logs/nightscore.log` in the state folder; `--verbose` shows it as well.
"""

import logging
import warnings
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from ml.cli.console import err, printable

OWN = "ml"
FILE = Path("logs") / "nightscore.log"
_MOST_BYTES = 2_000_000  # of the file; as much again is kept of what came before
# They report every request.
_TALKATIVE = ("httpx", "httpcore", "botocore", "alembic", "matplotlib")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Shown(logging.Handler):
    """Shows records on standard error, above whatever progress is drawn there."""

    def __init__(self) -> None:
        super().__init__()
        self.own_level = logging.WARNING
        self.verbose = False
        self.setFormatter(_Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        is_own = record.name == OWN or record.name.startswith(f"{OWN}.")
        if self.verbose or (is_own and record.levelno >= self.own_level):
            err.print(self.format(record), markup=False, highlight=False)


class _File(RotatingFileHandler):
    """Is opened with its first record, and never in a command's way."""

    def _open(self) -> Any:
        path = Path(self.baseFilename)
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk or a folder that may not be written to is no reason to fail."""


_shown = _Shown()


def start(state_folder: Path) -> None:
    """Log into the state folder, and show Nightscore's warnings; called once, before a command."""
    file = _File(
        state_folder / FILE, maxBytes=_MOST_BYTES, backupCount=1, encoding="utf-8", delay=True
    )
    file.setFormatter(_Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[file, _shown], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # Each once; the filters that libraries set for themselves stay.
    warnings.simplefilter("default", append=True)


def show_own() -> None:
    """Show also what Nightscore says of its progress, for commands that do all their work here."""
    _shown.own_level = logging.INFO


def be_verbose() -> None:
    """Show everything, with the name of whoever says it."""
    _shown.verbose = True
    _shown.setFormatter(_Formatter("%(name)s: %(message)s"))
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO)


def is_verbose() -> bool:
    """Whether `--verbose` was given."""
    return _shown.verbose
