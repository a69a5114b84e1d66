"""What every section of `nightscore.yaml` has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the file: unknown keys are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
