"""Errors that a user can act on.

All errors that Nightscore raises for its users derive from `NightscoreError`. The command line
prints such an error without a traceback; a DAG task fails with it.
"""


class NightscoreError(Exception):
    """A failure, with a message for the user and a hint at what to do about it.

    Args:
        message: What went wrong, with the name of the thing it went wrong with.
        hint: What to do about it, as an imperative sentence; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigurationError(NightscoreError):
    """`nightscore.yaml` or the environment is wrong; a retry cannot help."""


class DataError(NightscoreError):
    """Data is missing or contradicts itself; a retry cannot help."""


class ServiceError(NightscoreError):
    """Postgres, S3, MLflow or Airflow failed or cannot be reached; a retry may help."""


class GpuMemoryError(ServiceError):
    """The GPU's memory, or this process's share of it, is used up; a retry may help."""


class RunFailedError(NightscoreError):
    """A scoring run ended with status `failed`; the images that could be scored are stored."""
