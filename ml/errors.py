"""Errors that a user can act on.

Everything Nightscore raises on purpose derives from `NightscoreError`. The command line prints
such an error in one line without a traceback; a DAG task fails with it. `hint` says what to do.
"""


class NightscoreError(Exception):
    """A failure with a message for the user and, where there is one, a way out.

    Args:
        message: what went wrong, naming the thing it went wrong with.
        hint: what to do about it, as an imperative sentence; empty when there is nothing to say.
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
    """Postgres, S3, MLflow or Airflow did not do its part; a retry may help."""


class GpuMemoryError(ServiceError):
    """The memory of the GPU, or this process's share of it, is used up; a retry may find more."""


class RunFailedError(NightscoreError):
    """A scoring run ended `failed`; everything that could be scored is stored."""
