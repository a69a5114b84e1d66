"""How long work reports its progress; the command line decides how that looks."""

from collections.abc import Callable
from typing import Protocol

# Takes a line for a person.
OnMessage = Callable[[str], None]


class Progress(Protocol):
    """Shows what is done for several tasks at the same time; called from several threads."""

    def message(self, line: str) -> None:
        """Show a line that stays."""

    def update(self, task: str, status: str) -> None:
        """Show the current status of a task, which is known by its name."""

    def finish(self, task: str) -> None:
        """Remove a task from what is shown."""
