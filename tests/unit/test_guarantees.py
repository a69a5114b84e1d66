"""The page of promises: each names tests, and they exist."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "guarantees.md").read_text(encoding="utf-8")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_ROW = re.compile(r"^\| (?!promise \||component \||---)(.+?) \| (.+) \|$", re.MULTILINE)


def _functions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists():
    named = set(_TEST.findall(PAGE))
    assert len(named) > 50
    missing = [
        f"{path}::{name}" for path, name in named if name not in _functions(REPOSITORY / path)
    ]
    assert missing == []


def test_every_promise_names_a_test():
    promises = PAGE[: PAGE.index("## What is not promised")]
    rows = _ROW.findall(promises)
    assert len(rows) > 35
    assert [promise for promise, held_by in rows if not _TEST.search(held_by)] == []
