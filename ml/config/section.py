"""What every section of `nightscore.yaml` has in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict

_MAX_VALUE_LENGTH = 100


class Section(BaseModel):
    """A section of the file: unknown keys are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def short_repr(value: Any) -> str:
    """Return a value of the file as it appears in a message."""
    text = type(value).__name__ if isinstance(value, dict | list) else repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}..."
