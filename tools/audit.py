"""Asks a database of known vulnerabilities about every package that the lock files pin.

    .venv/bin/python -m tools.audit

All pins of requirements/*.txt are asked about, those for other platforms and versions of Python
included. The databases are PyPI's advisories, and OSV where those cannot be had. Exit status: 0
when nothing is known against any package, 1 with what is known, 3 when it was not checked.

A network that lets only packages through often answers a question about advisories with "no such
package", which pip-audit counts as nothing found. So each database is first asked about a version
that is known to be vulnerable, and one that knows nothing of it is not believed.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tools.locks import REPOSITORY, REQUIREMENTS, Pin, lock_files, pins

ACCEPTED = REQUIREMENTS / "accepted.toml"
PIP_AUDIT = REPOSITORY / ".venv-audit" / "bin" / "pip-audit"
DATABASES = ("pypi", "osv")
# Vulnerable since 2019 (CVE-2019-10906), and never withdrawn.
KNOWN_TO_BE_VULNERABLE = Pin("jinja2", "2.10", ())
FOUND, NOT_CHECKED = 1, 3


class UnreachableError(Exception):
    """No database of known vulnerabilities answers."""


@dataclass(frozen=True, order=True)
class Finding:
    """A known vulnerability of one pinned package."""

    package: str
    version: str
    id: str
    aliases: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join((self.id, *self.aliases))
        fixed = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fixed version"
        return f"{self.package} {self.version}: {names}; {fixed}"


def ask(database: str, asked: Iterable[Pin]) -> tuple[list[Finding], list[str]]:
    """Ask a database for the known vulnerabilities of pins, and which packages it does not know.

    Raises:
        Unreachable: when it cannot be asked at all.
    """
    findings: list[Finding] = []
    unanswered = []
    for distinct in _distinct(asked):
        for package in _report(database, distinct):
            findings += [_finding(package, known) for known in package.get("vulns", [])]
            if "skip_reason" in package:
                unanswered.append(package["name"])
    return sorted(findings), sorted(unanswered)


def _distinct(asked: Iterable[Pin]) -> list[list[Pin]]:
    """The pins in as many lists as needed for none to have a package twice."""
    lists: list[dict[str, Pin]] = []
    for name, version in sorted({(pin.name, pin.version) for pin in asked}):
        free = next((each for each in lists if name not in each), None)
        if free is None:
            lists.append(free := {})
        free[name] = Pin(name, version, ())
    return [list(each.values()) for each in lists]


def _report(database: str, asked: list[Pin]) -> list[dict[str, Any]]:
    """pip-audit's answer about pins with distinct names, none of which it installs."""
    options = ["--progress-spinner=off", "--format=json", "--desc=off", "--aliases=on"]
    command = [str(PIP_AUDIT), "--disable-pip", "--no-deps", "-s", database, *options]
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in asked))
        done = subprocess.run([*command, "-r", listed], capture_output=True, text=True)
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except json.JSONDecodeError:
        # A traceback of its HTTP client, or one line.
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UnreachableError(
            f"{database}: {last.partition(': ')[0].rpartition('.')[2]}"
        ) from None


def _finding(package: dict[str, Any], known: dict[str, Any]) -> Finding:
    return Finding(
        package["name"],
        package["version"],
        known["id"],
        tuple(sorted(known["aliases"])),
        tuple(known["fix_versions"]),
    )


def trusted_database() -> str:
    """The first database that answers and knows what everybody knows.

    Raises:
        Unreachable: with what is wrong with each.
    """
    wrong = []
    for database in DATABASES:
        try:
            if ask(database, [KNOWN_TO_BE_VULNERABLE])[0]:
                return database
            wrong.append(f"{database}: gives no advisories")
        except UnreachableError as error:
            wrong.append(str(error))
    raise UnreachableError("; ".join(wrong))


def accepted(today: date) -> dict[tuple[str, str], str]:
    """The reasons of requirements/accepted.toml that still hold, by package and id."""
    entries = tomllib.loads(ACCEPTED.read_text(encoding="utf-8")).get("accepted", [])
    return {
        (each["package"], each["id"]): each["reason"] for each in entries if today <= each["until"]
    }


def divide(
    findings: Iterable[Finding], reasons: dict[tuple[str, str], str]
) -> tuple[list[Finding], list[tuple[Finding, str]]]:
    """The findings that stand, and those that are accepted, with the reason."""
    stand, live_with = [], []
    for finding in findings:
        names = [(finding.package, name) for name in (finding.id, *finding.aliases)]
        reason = next((reasons[name] for name in names if name in reasons), None)
        if reason is None:
            stand.append(finding)
        else:
            live_with.append((finding, reason))
    return stand, live_with


def main() -> int:
    """Print the findings; returns the exit status of docs/dependencies.md."""
    asked = {(pin.name, pin.version): pin for path in lock_files() for pin in pins(path)}
    try:
        database = trusted_database()
        findings, unanswered = ask(database, asked.values())
    except UnreachableError as error:
        print(f"Nothing was checked: no database of known vulnerabilities answers ({error}).")
        return NOT_CHECKED
    stand, live_with = divide(findings, accepted(date.today()))
    for finding, reason in live_with:
        print(f"accepted: {finding}; {reason}")
    for finding in stand:
        print(finding)
    if unanswered:
        print(f"not checked, as {database} does not know them: {', '.join(unanswered)}")
    known = "1 known vulnerability" if len(stand) == 1 else f"{len(stand)} known vulnerabilities"
    print(f"{known} in {len(asked) - len(unanswered)} locked packages (asked: {database}).")
    if stand:
        return FOUND
    return NOT_CHECKED if unanswered else 0


if __name__ == "__main__":
    sys.exit(main())
