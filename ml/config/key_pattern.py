"""The pattern that takes the camera of an image out of its key.

The keys come from outside, so they are searched with RE2, whose time is linear in the length of a
key, whatever the pattern is. Python's `re` may take exponential time. RE2 is loaded only for a
stream that has a pattern.
"""

import re
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

GROUPS = ("camera", "line", "product")
MAX_PATTERN_LENGTH, MAX_NAME_LENGTH = 500, 100
_GROUP_NAMES = re.compile(r"\(\?P?<([^>=!]*)>")
_NO_SPAN = (-1, -1)
_ALLOWED = "allowed: the named groups (?P<camera>...), which has to be there, line and product"


class CameraName(NamedTuple):
    """What a pattern finds in a key; `line` and `product` are empty where it has no such group."""

    camera: str
    line: str = ""
    product: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{group} {name}" for group, name in self._asdict().items() if name)


class KeyPattern:
    """A regular expression in RE2's syntax, with named groups out of camera, line and product.

    Args:
        pattern: the expression; it has to have the group camera.

    Raises:
        ValueError: the expression is not one, or has other groups; the message has what is allowed.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._expression = _compile(pattern)
        names = _check_groups(pattern, self._expression)
        # The numbers of the groups, in the order of GROUPS; None for a group that is not there.
        self._numbers = tuple(names.get(group) for group in GROUPS)

    def search(self, key: str) -> tuple[bytes, bytes, bytes] | None:
        """Return the texts of the groups (camera, line, product) in UTF-8, unchecked.

        The search is for bytes, as RE2's Python interface needs twice the time for a string.

        Args:
            key: the part of an object's key below the folder of its night.

        Returns:
            Empty texts for groups that are not in the pattern or take no part in the match; None if
            the pattern does not match.
        """
        encoded = key.encode("utf-8", "replace")
        match = self._expression.search(encoded)
        if match is None:
            return None
        texts = []
        for number in self._numbers:
            start, end = _NO_SPAN if number is None else match.span(number)
            texts.append(encoded[start:end] if end > 0 else b"")
        return texts[0], texts[1], texts[2]


def camera_name(texts: tuple[bytes, bytes, bytes]) -> CameraName | None:
    """Return the camera of what `KeyPattern.search` has found.

    Returns:
        None if it is not a name: the text of camera is empty, or one of the texts has more than
        `MAX_NAME_LENGTH` characters, or characters that cannot be printed.
    """
    name = CameraName(*(text.decode("utf-8", "replace") for text in texts))
    is_name = name.camera and all(
        len(text) <= MAX_NAME_LENGTH and text.isprintable() for text in name
    )
    return name if is_name else None


@lru_cache(maxsize=64)
def key_pattern(pattern: str) -> KeyPattern:
    """Return the compiled pattern; each is compiled once in a process.

    Raises:
        ValueError: as `KeyPattern` does.
    """
    return KeyPattern(pattern)


def _compile(pattern: str) -> Any:
    import re2

    if len(pattern) > MAX_PATTERN_LENGTH:
        raise ValueError(
            f"has {len(pattern)} characters; a pattern may have {MAX_PATTERN_LENGTH} at most"
        )
    options = re2.Options()
    options.log_errors = False  # it writes to standard error
    try:
        return re2.compile(pattern, options)
    except UnicodeEncodeError:
        reason = "it has no form in UTF-8"
    except re2.error as error:
        message = error.args[0]
        reason = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
    raise ValueError(f"is not a regular expression of RE2: {reason[:60]}; {_ALLOWED}")


def _check_groups(pattern: str, expression: Any) -> dict[str, int]:
    """Return the names of the groups with their numbers.

    Raises:
        ValueError: camera is missing, or there is another name, or a name is there twice.
    """
    names: dict[str, int] = expression.groupindex
    if "camera" not in names:
        raise ValueError(f"has no group camera; {_ALLOWED}")
    if unknown := sorted(names.keys() - set(GROUPS)):
        raise ValueError(f"has the group {unknown[0][:60]!r}; {_ALLOWED}")
    # RE2 for Python takes a name that is there twice, and forgets one of its groups.
    repeated = [name for name, n in Counter(_GROUP_NAMES.findall(pattern)).items() if n > 1]
    if repeated:
        raise ValueError(f"has the group {repeated[0]!r} twice; {_ALLOWED}")
    return names
