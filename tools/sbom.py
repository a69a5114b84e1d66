"""Writes what is installed in .venv as a bill of materials, in CycloneDX 1.6.

    .venv-audit/bin/python -m tools.sbom build/sbom.cdx.json

The same environment gives the same file, byte by byte, so it has neither a time nor a serial
number. Licences are those of docs/licences.md. Links are left out: a package's purl says what it
is, most links are to chats and donations, and one to a file or an index of this machine says
nothing elsewhere.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator
from packaging.utils import canonicalize_name

from tools import licences
from tools.locks import REPOSITORY

SPECIFICATION = SchemaVersion.V1_6


def collected() -> dict[str, Any]:
    """The bill of materials as cyclonedx-py writes it."""
    command = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment"]
    options = ["--pyproject", "pyproject.toml", "--output-reproducible", "--no-validate"]
    version = ["--sv", SPECIFICATION.to_version()]
    done = subprocess.run(
        [*command, *options, *version, ".venv"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    bill: dict[str, Any] = json.loads(done.stdout)
    return bill


def without_links(part: Any) -> Any:
    """The same JSON without `externalReferences`."""
    if isinstance(part, list):
        return [without_links(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {k: without_links(v) for k, v in part.items() if k != "externalReferences"}


def with_licences(bill: dict[str, Any]) -> dict[str, Any]:
    """The same bill with the SPDX expressions of docs/licences.md for the packages it names."""
    read = {row["name"]: row for row in licences.rows(licences.PAGE.read_text(encoding="utf-8"))}
    for component in bill["components"]:
        row = read.get(canonicalize_name(component["name"]))
        if row and component["version"] in row["versions"].split(", "):
            component["licenses"] = [
                {"expression": row["licence"], "acknowledgement": "concluded"},
            ]
    return bill


def main(path: Path) -> None:
    """Write the bill of materials to a file; exits with what is wrong with an invalid one."""
    bill = with_licences(without_links(collected()))
    text = json.dumps(bill, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if error := make_schemabased_validator(OutputFormat.JSON, SPECIFICATION).validate_str(text):
        raise SystemExit(f"Not a valid bill of materials, so not written: {error}")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{len(bill['components'])} components written to {path}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
