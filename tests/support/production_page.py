"""The commands of docs/production.md, as the tests run them."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "production.md"
# The part that is followed from its first command to its last.
PATH_HEADING = "## From nothing to a scored night"
_BLOCK = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code of the page.

    Attributes:
        language: `sh`, or that of a file.
        is_service: whether its last command runs until it is stopped.
        text: what it says.
    """

    language: str
    is_service: bool
    text: str


def all_blocks() -> list[Block]:
    """Return the blocks of the page, in its order."""
    return _blocks(PAGE.read_text(encoding="utf-8"))


def path_blocks() -> list[Block]:
    """Return the blocks that lead from nothing to a scored night; the first has the addresses."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"{PATH_HEADING}\n")
    return _blocks(rest.partition("\n## ")[0])


def _blocks(text: str) -> list[Block]:
    return [
        Block(language, mark == "service", content)
        for language, mark, content in _BLOCK.findall(text)
    ]


def with_values(addresses: Block, values: dict[str, str]) -> str:
    """Return the block of addresses with other values; all else of it stays."""
    text = addresses.text
    for name, value in values.items():
        text, count = re.subn(rf"(?<=[ ]){name}=\S+", lambda _, v=f"{name}={value}": v, text)
        assert count == 1, f"the page sets {name} {count} times"
    return text
