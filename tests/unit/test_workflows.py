"""What GitHub reads of this repository, checked without a network: workflows and forms."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
GITHUB = REPOSITORY / ".github"
TOOLS = REPOSITORY / ".venv-audit" / "bin"
# By check-jsonschema's name of the schema: the files that must fit it.
SCHEMAS = {
    "github-workflows": [*GITHUB.glob("workflows/*.yml")],
    "dependabot": [GITHUB / "dependabot.yml"],
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "github-issue-forms": [
        path for path in GITHUB.glob("ISSUE_TEMPLATE/*.yml") if path.stem != "config"
    ],
}
needs_tools = pytest.mark.skipif(
    not (TOOLS / "zizmor").exists(),
    reason="the tools of requirements/audit.txt are not installed (make .venv-audit/.installed)",
)


@needs_tools
@pytest.mark.parametrize("schema", SCHEMAS)
def test_each_file_fits_the_schema_of_its_kind(schema):
    assert SCHEMAS[schema]
    command = [TOOLS / "check-jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, *SCHEMAS[schema]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_file_of_the_folder_has_a_schema():
    files = {*GITHUB.rglob("*.yml"), *GITHUB.rglob("*.yaml")}
    assert files == {path for paths in SCHEMAS.values() for path in paths}


@needs_tools
def test_zizmor_finds_nothing_in_the_workflows():
    command = [TOOLS / "zizmor", "--offline", "--pedantic", "--no-progress", GITHUB]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_action_is_pinned_to_a_commit_and_says_its_version():
    for path in GITHUB.glob("workflows/*.yml"):
        lines = [line for line in path.read_text("utf-8").splitlines() if "uses:" in line]
        assert lines
        for line in lines:
            assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_every_python_that_the_project_supports_is_tested():
    workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text("utf-8"))
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    lowest, above = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project).groups()
    assert tested == [f"3.{minor}" for minor in range(int(lowest), int(above))]
