"""Read `nightscore.yaml`, and report mistakes with their lines."""

import math
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from ml.config.architectures import options_model
from ml.config.resources import (
    ModelResources,
    Resources,
    StreamResources,
    TaskResources,
    Toleration,
)
from ml.config.retention import ModelRetention, Retention, StreamRetention
from ml.config.schema import (
    FOLDER_URI,
    SCHEMES,
    Configuration,
    Gate,
    Limits,
    Model,
    Stream,
    Threshold,
    Training,
)
from ml.config.section import Section, short_repr
from ml.errors import ConfigurationError

# Real files have a few kilobytes. YAML is slow to read, and an alias may expand to any size.
MAX_BYTES = 128 * 1024
MAX_VALUES, MAX_BRACKETS, MAX_DEPTH = 20_000, 10_000, 50
_MAX_PROBLEMS, _MAX_MESSAGE_LENGTH = 20, 300


def load(path: Path) -> Configuration:
    """Read and check a configuration file.

    Raises:
        ConfigurationError: The file is missing, is not YAML, or a value is not allowed; the message
            has the file, the line, the keys that lead to the value, and what is allowed.
    """
    try:
        document = YAML(typ="rt").load(_read_text(path))
    except ConfigurationError:
        raise
    except Exception as error:  # not only YAMLError: the parser fails on some numbers and dates
        message = _printable(" ".join(str(error).split()) or type(error).__name__)
        raise ConfigurationError(f"{path} is not valid YAML: {message}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} holds no settings: expected storage, streams and models.")
    values = _to_plain_types(path, document)
    try:
        return Configuration.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        problems = [_describe(path, document, problem) for problem in errors[:_MAX_PROBLEMS]]
        if len(errors) > _MAX_PROBLEMS:
            problems.append(f"{path}: and {len(errors) - _MAX_PROBLEMS} more mistakes")
        raise ConfigurationError("\n".join(problems)) from None


def _read_text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"{path} is not a file.")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist.",
            "Run from the folder that holds nightscore.yaml, or set NIGHTSCORE_CONFIG.",
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"{path} has more than {MAX_BYTES} bytes.")
    text = content.decode("utf-8-sig")
    _check_brackets(path, text)
    return text


def _check_brackets(path: Path, text: str) -> None:
    """Refuse files that would keep the parser busy for seconds: it is slow at brackets."""
    if sum(text.count(mark) for mark in "[{,") > MAX_BRACKETS:
        raise ConfigurationError(f"{path} has more than {MAX_BRACKETS} brackets and commas.")
    depth = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ConfigurationError(f"{path} has more than {MAX_DEPTH} brackets in each other.")


def _to_plain_types(path: Path, document: Any) -> Any:
    """Copy the document without ruamel's types, which keep the positions in the file.

    Raises:
        ConfigurationError: A value is of a type or size that no setting has.
    """
    remaining = MAX_VALUES

    def copy(node: Any, *location: Any) -> Any:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            hint = "An alias counts as all the values that it stands for."
            raise ConfigurationError(f"{path} has more than {MAX_VALUES} values.", hint)
        if isinstance(node, dict):
            return {key: copy(value, *location, key) for key, value in node.items()}
        if isinstance(node, list):
            return [copy(value, *location, index) for index, value in enumerate(node)]
        if reason := _reason_to_refuse(node):
            raise ConfigurationError(_with_location(path, document, list(location), reason))
        return node

    try:
        return copy(document)
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deep.") from None


def _reason_to_refuse(value: Any) -> str:
    """Say why no setting can have a value; empty when some setting can."""
    if value is not None and not isinstance(value, str | int | float):
        return f"is of type {type(value).__name__}; only text, numbers, lists and mappings may be"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"is a number of {value.bit_length()} bits; the limit is 64"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {float(value)}, which is not a finite number"
    return ""


def _printable(text: str) -> str:
    """Make a piece of the file fit for a message: one line, of limited length."""
    start = text[:_MAX_MESSAGE_LENGTH]
    line = "".join(character if character.isprintable() else "?" for character in start)
    return line if len(text) <= _MAX_MESSAGE_LENGTH else f"{line}..."


def _describe(path: Path, document: Any, problem: Any) -> str:
    """Turn one of pydantic's errors into a line with its place in the file."""
    location = [part for part in problem["loc"] if part != "[key]"]
    if problem["type"] == "at_path":
        location += problem["ctx"]["path"].split(".")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key; allowed: {', '.join(_allowed_keys(document, location))}"
    elif problem["type"] == "missing":
        message = "is required"
    elif problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == FOLDER_URI:
        value = short_repr(problem["input"])
        forms = " or ".join(f"{scheme}://BUCKET/PREFIX" for scheme in SCHEMES)
        message = f"{value} is not of the form {forms} without a final slash"
    elif problem["type"] == "string_pattern_mismatch":
        value = short_repr(problem["input"])
        message = f"{value} may hold lower-case letters, digits, '-' and '_' only"
    elif problem["type"] != "at_path":
        message = f"{message} (it is {short_repr(problem['input'])})" if location else message
    return _with_location(path, document, location, message)


def _with_location(path: Path, document: Any, location: list[Any], message: str) -> str:
    keys = _printable(".".join(str(part) for part in location))
    line = _line_number(document, location)
    return f"{path}:{line}: {keys + ': ' if keys else ''}{_printable(message)}"


def _line_number(document: Any, location: list[Any]) -> int:
    """Return the line, from 1, of the innermost part of `location` that the file has."""
    line = 1
    node: Any = document
    for part in location:
        try:
            position = node.lc.item(part) if isinstance(part, int) else node.lc.key(part)
            line, node = position[0] + 1, node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _allowed_keys(document: Any, location: list[Any]) -> list[str]:
    """Return the keys that are allowed in place of the unknown one at the end of `location`."""
    sections: dict[str, dict[str, type[Section]]] = {
        "streams": {"": Stream, "limits": Limits, "retention": StreamRetention},
        "models": {
            "": Model,
            "training": Training,
            "gate": Gate,
            "threshold": Threshold,
            "retention": ModelRetention,
        },
    }
    if location[0] == "retention" and len(location) > 1:
        return sorted(Retention.model_fields)
    at = 0 if location[0] == "resources" else 2
    if location[at : at + 1] == ["resources"] and len(location) > at + 1:
        return _allowed_resources(location[0], location[at + 1 :])
    if len(location) < 3 or location[0] not in sections:
        return sorted(Configuration.model_fields)
    section = str(location[2]) if len(location) > 3 else ""
    if section == "options":
        model = document["models"][location[1]]
        return sorted(options_model(model["architecture"]).model_fields)
    return sorted(sections[location[0]].get(section, Configuration).model_fields)


def _allowed_resources(part: Any, below: list[Any]) -> list[str]:
    """Return the keys that are allowed at the end of a location below `resources`."""
    kinds: dict[Any, type[Section]] = {"streams": StreamResources, "models": ModelResources}
    section = kinds.get(part, Resources) if len(below) == 1 else TaskResources
    return sorted((Toleration if "tolerations" in below[:-1] else section).model_fields)


@lru_cache(maxsize=8)
def _load_cached(path: Path, modified_ns: int) -> Configuration:
    return load(path)


def config_path() -> Path:
    """Return the file in use: `NIGHTSCORE_CONFIG`, else ./nightscore.yaml."""
    return Path(os.environ.get("NIGHTSCORE_CONFIG") or "nightscore.yaml").absolute()


def configuration(path: Path | None = None) -> Configuration:
    """Return the configuration in `path`, by default in `config_path()`.

    The file is read again when it has changed.
    """
    path = path or config_path()
    return _load_cached(path, path.stat().st_mtime_ns if path.exists() else 0)
