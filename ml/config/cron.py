"""Schedules, as cron writes them."""

from typing import Annotated

from croniter import croniter
from pydantic import AfterValidator

from ml.config.section import short_repr

_MAX_LENGTH = 200


def _check(expression: str) -> str:
    is_short = len(expression) <= _MAX_LENGTH
    if not is_short or len(expression.split()) != 5 or not croniter.is_valid(expression):
        raise ValueError(
            f"{short_repr(expression)} is not a cron expression of five fields, such as '0 2 * * *'"
        )
    return expression


Cron = Annotated[str, AfterValidator(_check)]
