"""The error of a deletion that turned out to be wrong when it was about to happen."""

from ml.errors import DataError


class StillNeededError(DataError):
    """Something needs a candidate by now, so it stays. This is no failure."""
