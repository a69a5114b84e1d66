"""Read `nightscore.yaml`, and say where in it a mistake is."""

import math
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)
from ruamel.yaml import YAML

from ml.config.schema import (
    _MOST_LETTERS,
    _MOST_PROBLEMS,
    S3_URI,
    Configuration,
    Gate,
    Limits,
    Model,
    Stream,
    Strict,
    Threshold,
    Training,
    shown,
)
from ml.errors import ConfigurationError

# Real files have a few kilobytes. YAML reads slowly, and an alias may stand for ever more of them.
MAX_BYTES = 128 * 1024

MAX_VALUES, MAX_BRACKETS, MAX_DEPTH = 20_000, 10_000, 50


def load(path: Path) -> Configuration:
    """Read and check a configuration file.

    Raises:
        ConfigurationError: the file is missing, is not YAML, or a value is not allowed; the message
            names file, line, path within the file and what is allowed.
    """
    try:
        document = YAML(typ="rt").load(_text(path))
    except ConfigurationError:
        raise
    except Exception as error:  # beside YAMLError, whatever an odd number, date or depth leads to
        message = _printable(" ".join(str(error).split()) or type(error).__name__)
        raise ConfigurationError(f"{path} is not valid YAML: {message}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} holds no settings: expected storage, streams and models.")
    values = _plain(path, document)
    try:
        return Configuration.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        problems = [_explain(path, document, problem) for problem in found[:_MOST_PROBLEMS]]
        if len(found) > _MOST_PROBLEMS:
            problems.append(f"{path}: and {len(found) - _MOST_PROBLEMS} more mistakes")
        raise ConfigurationError("\n".join(problems)) from None


def _text(path: Path) -> str:
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
    """Refuse what the parser takes seconds for: each level of brackets, each of their commas."""
    if sum(text.count(mark) for mark in "[{,") > MAX_BRACKETS:
        raise ConfigurationError(f"{path} has more than {MAX_BRACKETS} brackets and commas.")
    depth = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ConfigurationError(f"{path} has more than {MAX_DEPTH} brackets in each other.")


def _plain(path: Path, document: Any) -> Any:
    """The document without ruamel's position-keeping types; raises ConfigurationError for what no
    setting can be."""
    left = MAX_VALUES

    def copied(node: Any, *where: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            hint = "An alias counts as all that it stands for."
            raise ConfigurationError(f"{path} has more than {MAX_VALUES} values.", hint)
        if isinstance(node, dict):
            return {key: copied(value, *where, key) for key, value in node.items()}
        if isinstance(node, list):
            return [copied(value, *where, number) for number, value in enumerate(node)]
        if fault := _fault(node):
            raise ConfigurationError(_at_line(path, document, list(where), fault))
        return node

    try:
        return copied(document)
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deep.") from None


def _fault(value: Any) -> str:
    """What is wrong with a value, wherever it stands; empty when nothing is."""
    if value is not None and not isinstance(value, str | int | float):
        return f"is of type {type(value).__name__}; only text, numbers, lists and mappings may be"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"is a number of {value.bit_length()} bits; the limit is 64"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {float(value)}, which is not a finite number"
    return ""


def _printable(text: str) -> str:
    """A piece of the file for a message: one line, of bounded length."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:_MOST_LETTERS])
    return shown if len(text) <= _MOST_LETTERS else f"{shown}..."


def _explain(path: Path, document: Any, problem: Any) -> str:
    location = [part for part in problem["loc"] if part != "[key]"]
    if problem["type"] == "fault":
        location += problem["ctx"]["path"].split(".")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key; allowed: {', '.join(_allowed_keys(location))}"
    elif problem["type"] == "missing":
        message = "is required"
    elif problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == S3_URI:
        value = shown(problem["input"])
        message = f"{value} is not of the form s3://BUCKET/PREFIX without a final slash"
    elif problem["type"] == "string_pattern_mismatch":
        message = f"{shown(problem['input'])} may hold lower-case letters, digits, '-' and '_' only"
    elif problem["type"] != "fault":
        message = f"{message} (it is {shown(problem['input'])})" if location else message
    return _at_line(path, document, location, message)


def _at_line(path: Path, document: Any, location: list[Any], message: str) -> str:
    where = _printable(".".join(str(part) for part in location))
    line = _line_of(document, location)
    return f"{path}:{line}: {where + ': ' if where else ''}{_printable(message)}"


def _line_of(document: Any, location: list[Any]) -> int:
    """The line, counted from 1, of the innermost part of `location` that the file has."""
    line = 1
    node: Any = document
    for part in location:
        try:
            position = node.lc.item(part) if isinstance(part, int) else node.lc.key(part)
            line, node = position[0] + 1, node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _allowed_keys(location: list[Any]) -> list[str]:
    """The keys that may stand beside the unknown one at the end of `location`."""
    sections: dict[str, dict[str, type[Strict]]] = {
        "streams": {"": Stream, "limits": Limits},
        "models": {"": Model, "training": Training, "gate": Gate, "threshold": Threshold},
    }
    if len(location) < 3 or location[0] not in sections:
        return sorted(Configuration.model_fields)
    section = str(location[2]) if len(location) > 3 else ""
    return sorted(sections[location[0]].get(section, Configuration).model_fields)


@lru_cache(maxsize=8)
def _cached(path: Path, modified_ns: int) -> Configuration:
    return load(path)


def path_in_use() -> Path:
    """The configuration file of this process: `NIGHTSCORE_CONFIG`, else ./nightscore.yaml."""
    return Path(os.environ.get("NIGHTSCORE_CONFIG") or "nightscore.yaml").absolute()


def configuration(path: Path | None = None) -> Configuration:
    """The configuration at `path`, else the one in use; read again when the file changes."""
    path = path or path_in_use()
    return _cached(path, path.stat().st_mtime_ns if path.exists() else 0)
