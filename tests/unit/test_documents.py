"""Links between the documents lead somewhere, and the README has every target of the Makefile."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "benchmarks").rglob("*.md"),
        *(REPOSITORY / "docker").rglob("*.md"),
    ]
)
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings; a repeated one gets a number."""
    found: list[str] = []
    for heading in _HEADING.findall(_CODE.sub("", page.read_text("utf-8"))):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_each_link_leads_to_a_file_and_a_heading_that_exist(page):
    for place, anchor in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        target = page.parent / place if place else page
        assert target.exists(), place
        if anchor:
            assert anchor in _anchors(target), f"{place}#{anchor}"


def test_the_readme_names_every_target_that_make_help_lists():
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE)) - {"help"}
    named = set(re.findall(r"\bmake ([a-z-]+)", (REPOSITORY / "README.md").read_text("utf-8")))
    assert len(targets) > 15
    assert sorted(targets - named) == []
