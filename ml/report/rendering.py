"""The HTML templates of the reports; every value in them is escaped."""

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ml.config.key_pattern import GROUPS


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ml.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = _count
    environment.filters["percent"] = _percent
    environment.filters["time"] = _time
    environment.filters["figure"] = _figure
    environment.filters["score"] = _score
    environment.filters["camera"] = _camera
    environment.filters["name"] = lambda uri: uri.rsplit("/", 1)[-1]
    return environment


def render_template(template: str, **values: Any) -> str:
    """Fill the template `ml/report/templates/TEMPLATE` with `values`."""
    return _environment().get_template(template).render(**values)


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.1%}"


def _figure(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"


def _score(score: float | None) -> str:
    """With enough digits to distinguish scores near 1; never rounded up to 1."""
    if score is None:
        return "–"
    return "> 0.99999" if score > 0.99999 else f"{score:.5f}"


def _camera(row: Mapping[str, Any]) -> str:
    """The camera of an image with its line and product; empty if the image has none."""
    groups = [(group, row[group]) for group in GROUPS]
    return ", ".join(f"{group} {name}" for group, name in groups if name)


def _time(moment: datetime | None) -> str:
    return "–" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S %Z")
