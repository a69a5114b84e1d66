"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the code."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ml.stack.local import LocalStack
from tests.support import stacks

REPOSITORY = Path(__file__).parents[2]
RECIPES = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Recipes\n")[2]
NIGHT = "2026-03-01"
_BLOCK = re.compile(r"^```(\w+) ?([\w./-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Checkout:
    """A copy of the code in which a recipe has been followed.

    Args:
        folder: where the copy is made.
        home: the state folder of a running stack with trained models.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.files: list[str] = []
        self._environment = os.environ | {
            "NIGHTSCORE_HOME": str(home),
            "NIGHTSCORE_CONFIG": str(folder / "nightscore.yaml"),
            "PYTHONPATH": str(folder),
        }
        shutil.copytree(REPOSITORY / "ml", folder / "ml", ignore=shutil.ignore_patterns("*.pyc"))
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        configuration = stacks.CONFIGURATION.format(bucket=stacks.BUCKET)
        (folder / "nightscore.yaml").write_text(configuration)

    def follow(self, title: str) -> None:
        """Make the files and the changes of a recipe."""
        _, _, recipe = RECIPES.partition(f"### {title}\n")
        for language, name, content in _BLOCK.findall(recipe.partition("\n### ")[0]):
            if language == "diff":
                name = self._change(content)
            else:
                (self.folder / name).write_text(content, encoding="utf-8")
            self.files.append(name)
        assert self.files

    def _change(self, diff: str) -> str:
        header, *hunks = diff.split("\n@@\n")
        name = header.partition("+++ b/")[2]
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        for hunk in hunks:
            lines = hunk.rstrip("\n").split("\n")
            before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
            after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
            assert text.count(before) == 1, f"{name} does not hold, once:\n{before}"
            text = text.replace(before, after)
        path.write_text(text, encoding="utf-8")
        return name

    def configure(self, section: str, settings: str) -> None:
        """Add to `streams` or `models` of nightscore.yaml."""
        path = self.folder / "nightscore.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"{section}:\n", f"{section}:\n{settings}"), encoding="utf-8")

    def python(self, code: str, *arguments: str, **variables: str) -> str:
        """Run code in the copy; returns what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=self._environment | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def nightscore(self, *arguments: str, **variables: str) -> str:
        """Run a command in the copy; returns what it prints."""
        return self.python("from ml.cli import main; main()", *arguments, **variables)

    def score(self, stream: str, **variables: str) -> list[dict]:
        """Score the night and return the rows of reporting.predictions."""
        self.nightscore("score", stream, "--date", NIGHT, **variables)
        return self.query(f"SELECT * FROM reporting.predictions WHERE stream = '{stream}'")

    def query(self, sql: str) -> list[dict]:
        rows: list[dict] = json.loads(self.nightscore("sql", sql, "--json"))
        return rows


@pytest.fixture(scope="module")
def home(shared_folder, tmp_path_factory, _clean_environment) -> Iterator[Path]:
    """The state folder of a stack of their own: one recipe changes its tables."""
    home = tmp_path_factory.mktemp("recipes") / ".nightscore"
    stacks.copy_of_trained(shared_folder, home)
    stack = LocalStack(home)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NIGHTSCORE_HOME", str(home))
            stacks.forget_connections()
            stack.up(("postgres", "s3", "mlflow"), ports=stacks.ports())
        stacks.forget_connections()
        yield home
    finally:
        stack.down()


@pytest.fixture
def checkout(home, tmp_path) -> Iterator[Checkout]:
    copy = Checkout(tmp_path / "copy", home)
    yield copy
    # What a recipe shows is written as all our code is.
    files = [name for name in copy.files if name.endswith(".py")]
    for command in (["check"], ["format", "--check"]):
        ruff = [Path(sys.executable).with_name("ruff"), *command, "--no-cache", *files]
        done = subprocess.run(ruff, cwd=copy.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    imports = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(imports, cwd=copy.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _write_images(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16, 16), (60 * number, 90, 120)).save(folder / f"{number}.png")
    return folder


def test_an_architecture_trains_and_scores(checkout, tmp_path):
    checkout.follow("An architecture")
    checkout.configure(
        "models",
        """\
  linear:
    task: classification
    dataset: shades
    architecture: linear_classifier
    input_size: [16, 16]
    options: {smoothing: 0.05}
    training:
      cpu: {epochs: 2, batch_size: 32, learning_rate: 0.01}
""",
    )
    checkout.configure(
        "streams", f"  toy: {{prefix: {stacks.BUCKET}/streams/toy, models: [linear]}}\n"
    )
    checkout.nightscore("train", "linear")
    images = _write_images(tmp_path / "images")
    checkout.nightscore("ingest", str(images), "--stream", "toy", "--date", NIGHT)
    rows = checkout.score("toy")
    assert [row["model"] for row in rows] == ["linear"] * 3
    assert all(row["predicted_class"] and 0 < row["confidence"] <= 1 for row in rows)


def test_an_image_format_is_decoded(checkout):
    checkout.follow("An image format")
    code = """
import sys
from ml.images.decoding import decode
from ml.images.formats import SUFFIXES
print(".ppm" in SUFFIXES, decode(b"P6 2 1 255\\n" + bytes(range(6)), max_pixels=100).tolist())
"""
    assert checkout.python(code) == "True [[[0, 1, 2], [3, 4, 5]]]\n"


def test_a_kind_of_report_is_written(checkout, tmp_path):
    checkout.follow("A kind of report")
    images = _write_images(tmp_path / "images")
    checkout.nightscore("ingest", str(images), "--stream", "line", "--date", NIGHT)
    checkout.score("line")
    uri = checkout.nightscore("week", "line", "--date", NIGHT).split()[-1]
    code = "import sys; from ml.storage.object_store import object_store as store\n"
    page = checkout.python(f"{code}print(store().get(sys.argv[1])[0].decode())", uri)
    assert f"<h1>line: seven nights to {NIGHT}</h1>" in page
    assert f'<tr><td>{NIGHT}</td><td class="n">3</td>' in page


def test_a_night_of_another_object_store_is_read(checkout, tmp_path):
    checkout.follow("An object store")
    checkout.configure("streams", "  share: {prefix: file://images/line, models: [shades]}\n")
    _write_images(tmp_path / "images" / "line" / f"dt={NIGHT}")
    rows = checkout.score("share", NIGHTSCORE_FILES_ROOT=str(tmp_path))
    uris = sorted(row["image_uri"] for row in rows)
    assert uris == [f"file://images/line/dt={NIGHT}/{number}.png" for number in range(3)]


def test_a_column_stands_in_each_row(checkout, tmp_path):
    checkout.follow("A column per image")
    checkout.nightscore("migrate")
    images = _write_images(tmp_path / "images")
    checkout.nightscore("ingest", str(images), "--stream", "both", "--date", NIGHT)
    rows = checkout.score("both")
    margins = [row["margin"] for row in rows if row["model"] == "shades"]
    assert len(margins) == 3 and all(0 <= margin <= 1 for margin in margins)
    assert {row["margin"] for row in rows if row["model"] == "moulds"} == {None}


def test_an_index_is_on_the_nights_of_before_and_after(checkout):
    python = "import sys; from sqlalchemy import text; from ml.database.connection import engine\n"
    run = "with engine().begin() as c: print(*c.execute(text(sys.argv[1])).one())"
    checkout.follow("A column per image")  # the migration that comes before
    checkout.nightscore("migrate")
    checkout.python(python + run, "SELECT nightscore.ensure_night('2026-04-01')")
    checkout.follow("An index")
    checkout.nightscore("migrate")
    checkout.python(python + run, "SELECT nightscore.ensure_night('2026-04-02')")
    indexed = """
        SELECT string_agg(right(indrelid::regclass::text, 8), ' ' ORDER BY 1), bool_and(indisvalid)
        FROM pg_index JOIN pg_inherits ON inhrelid = indexrelid
        WHERE inhparent = 'nightscore.prediction_confidence'::regclass
            AND indrelid::regclass::text LIKE '%_202604%'
    """
    assert checkout.python(python + run, indexed) == "20260401 20260402 True\n"
