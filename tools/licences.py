"""Writes the tables of docs/licences.md: every package of requirements/lock.txt with its licence.

A licence is an SPDX expression: the one that the package's metadata declares, or what its wording
means (`[wordings]` of requirements/licences.toml). Where metadata are missing or say different
things, somebody has read the licence and written it down (`[packages]`). None is guessed.
"""

import re
import tomllib
from collections import Counter
from importlib.metadata import distributions
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

from tools.locks import LOCK, REPOSITORY, REQUIREMENTS, pins

PAGE = REPOSITORY / "docs" / "licences.md"
BY_HAND = REQUIREMENTS / "licences.toml"
MARK = "<!-- Below here `make licences` writes. -->\n"
_ROW = re.compile(r"\| `(?P<name>[^`]+)` \| (?P<versions>[^|]+) \| (?P<licence>[^|]+) \|")


class UnknownLicencesError(Exception):
    """Packages whose licence nobody knows, by name."""


def declared(metadata: Any, wordings: dict[str, str]) -> str | None:
    """The licence that a package's metadata give, None where they are silent or contradictory."""
    if expression := metadata.get("License-Expression"):
        return str(canonicalize_license_expression(expression))
    classifiers = metadata.get_all("Classifier") or []
    said = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License :: ")]
    text = (metadata.get("License") or "").strip()
    if "\n" not in text:  # otherwise the licence's own text, which the classifier sums up
        said.append(text)
    expressions = {_spdx(words, wordings) for words in said} - {""}
    return expressions.pop() if len(expressions) == 1 else None


def _spdx(words: str, wordings: dict[str, str]) -> str:
    if words in wordings:
        return wordings[words]
    try:
        return canonicalize_license_expression(words)
    except InvalidLicenseExpression:
        return f"unknown: {words}" if words else ""


def licences() -> dict[str, str]:
    """The licence of each locked package, by name.

    A package that is for another platform, so not installed, keeps what the page says of it.

    Raises:
        UnknownLicences: when there is a package that nothing is known of.
    """
    by_hand = tomllib.loads(BY_HAND.read_text(encoding="utf-8"))
    installed = {str(canonicalize_name(each.metadata["Name"])): each for each in distributions()}
    written = {
        (row["name"], row["versions"]): row["licence"]
        for row in rows(PAGE.read_text(encoding="utf-8"))
    }
    licence_of = {}
    unknown = []
    for name, versions in _locked().items():
        if name in by_hand["packages"]:
            licence = by_hand["packages"][name]["licence"]
        elif name in installed:
            licence = declared(installed[name].metadata, by_hand["wordings"])
        else:
            licence = written.get((name, versions))
        try:
            licence_of[name] = str(canonicalize_license_expression(licence or ""))
        except InvalidLicenseExpression:
            unknown.append(name)
    if unknown:
        raise UnknownLicencesError(", ".join(unknown))
    return licence_of


def _locked() -> dict[str, str]:
    versions: dict[str, list[str]] = {}
    for pin in sorted(pins(LOCK)):
        versions.setdefault(pin.name, []).append(pin.version)
    return {name: ", ".join(each) for name, each in versions.items()}


def rows(page: str) -> list[dict[str, str]]:
    """The packages of the page: `name`, `versions` (separated by commas), `licence`."""
    return [match.groupdict() for match in _ROW.finditer(page.partition(MARK)[2])]


def tables(licence_of: dict[str, str]) -> str:
    """The page's generated part: how many packages have which licence, and the packages."""
    counts = sorted(Counter(licence_of.values()).items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(
        [
            f"\n{len(licence_of)} packages. By licence:\n",
            "| licence | packages |",
            "| --- | ---: |",
            *(f"| {licence} | {count} |" for licence, count in counts),
            "\n| package | version | licence |",
            "| --- | --- | --- |",
            *(
                f"| `{name}` | {versions} | {licence_of[name]} |"
                for name, versions in _locked().items()
            ),
            "",
        ]
    )


def main() -> None:
    """Write docs/licences.md."""
    try:
        licence_of = licences()
    except UnknownLicencesError as error:
        raise SystemExit(
            f"Licence unknown: {error}. Read it in the package and write it into "
            f"{BY_HAND.relative_to(REPOSITORY)}."
        ) from error
    note = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(note + MARK + tables(licence_of), encoding="utf-8")
    print(f"{len(licence_of)} packages written to {PAGE.relative_to(REPOSITORY)}.")


if __name__ == "__main__":
    main()
