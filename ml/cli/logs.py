"""The log of a command: Nightscore's own lines are shown, the libraries' go to a file.

A library logs for its developers as well as for its users. All of it goes to
`logs/nightscore.log` in the state folder; `--verbose` shows it too.
"""

import logging
import warnings
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from ml.cli.console import err, printable

OWN_LOGGER = "ml"
FILE = Path("logs") / "nightscore.log"
# Of the file; a second file of this size keeps what came before.
_MAX_BYTES = 2_000_000
# They log every request.
_NOISY_LOGGERS = ("httpx", "httpcore", "botocore", "alembic", "matplotlib")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _ConsoleHandler(logging.Handler):
    """Shows records on standard error, above the progress that is drawn there."""

    def __init__(self) -> None:
        super().__init__()
        self.own_level = logging.WARNING
        self.verbose = False
        self.setFormatter(_Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        is_own = record.name == OWN_LOGGER or record.name.startswith(f"{OWN_LOGGER}.")
        if self.verbose or (is_own and record.levelno >= self.own_level):
            err.print(self.format(record), markup=False, highlight=False)


class _FileHandler(RotatingFileHandler):
    """Opens its file with the first record; a file that cannot be written is ignored."""

    def _open(self) -> Any:
        path = Path(self.baseFilename)
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Ignore the error: a command must not fail because its log cannot be written."""


_console = _ConsoleHandler()


def start(state_folder: Path) -> None:
    """Log into the state folder and show Nightscore's warnings; called once, before a command."""
    file = _FileHandler(
        state_folder / FILE, maxBytes=_MAX_BYTES, backupCount=1, encoding="utf-8", delay=True
    )
    file.setFormatter(_Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[file, _console], force=True)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # Each warning once; the filters that libraries set for themselves stay.
    warnings.simplefilter("default", append=True)


def show_own_info() -> None:
    """Also show Nightscore's own INFO lines, for commands that do their work in this process."""
    _console.own_level = logging.INFO


def show_all() -> None:
    """Show every line of every library, with the name of its logger."""
    _console.verbose = True
    _console.setFormatter(_Formatter("%(name)s: %(message)s"))
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def is_verbose() -> bool:
    """Return whether the user has asked for `--verbose`."""
    return _console.verbose
