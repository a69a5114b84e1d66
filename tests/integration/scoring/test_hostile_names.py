"""Names that look like statements, markup or commands are names, all the way through."""

import json
import os
import subprocess
import sys
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sqlalchemy as sa

from ml.cli import command
from ml.data import dataset, snapshot
from ml.database.connection import transaction
from ml.errors import DataError, NightscoreError
from ml.registry import versions
from ml.report import nightly
from ml.retrain import steps as retrain
from ml.scoring import runs, steps
from ml.storage.object_store import object_store
from tests.support import synthetic_images

NIGHT = date(2026, 2, 10)
DROP = "'; DROP TABLE nightscore.image; --"
CLASSES = {
    "dark": f"dark{DROP}",
    "light": 'li"ght\\ %s :x {0} <b>bold | [a](b) `c` \u202e31m',
}
FILES = [
    f"{DROP}.png",
    '"quoted" $(id) `id`.png',
    "back\\slash \\' \\N.png",
    "per%cent %s %(x)s %27.png",
    ":bound :x {0} {x}.png",
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "new\nline\ttab.png",
    # ESC [, as a single character.
    "\x9b31mred\x9b0m.png",
    "ünïcode 中文 \u202e.png",
]


CONFIGURATION = """\
storage: {bucket}
streams:
  hostile:
    prefix: {bucket}/streams/hostile
    models: [hostile]
models:
  hostile:
    task: classification
    dataset: hostile
    architecture: residual_network
    input_size: [16, 16]
    options: {{width: 8}}
    holdout_share: 0.3
    training:
      cpu: {{epochs: 2, batch_size: 32, learning_rate: 0.1}}
    gate: {{metric: accuracy, minimum: 0.1}}
"""


@pytest.fixture(scope="module")
def night(services, tmp_path_factory):
    """A model trained on classes with such names has scored images with such names."""
    folder = tmp_path_factory.mktemp("hostile")
    bucket = f"s3://nightscore/{folder.name}"
    (folder / "nightscore.yaml").write_text(CONFIGURATION.format(bucket=bucket))
    before = os.environ.get("NIGHTSCORE_CONFIG")
    os.environ["NIGHTSCORE_CONFIG"] = str(folder / "nightscore.yaml")
    for label, name in CLASSES.items():
        images = folder / "images" / "train" / name
        images.mkdir(parents=True)
        for number in range(60):
            (images / f"{number} {DROP}.png").write_bytes(synthetic_images.shade(label, number))
    dataset.import_(folder / "images", "hostile", storage=bucket)
    retrain.retrain("hostile")
    for number, name in enumerate(FILES):
        # As a camera puts them there; an import would refuse control characters. The last ones
        # are broken: a rejection shows its name and says what was seen.
        content = synthetic_images.shade("dark", 500 + number) if number < 7 else DROP.encode()
        object_store().put(f"{bucket}/streams/hostile/dt={NIGHT}/{name}", content)
    counts = steps.score_night("hostile", NIGHT.isoformat())
    yield bucket, counts
    if before is None:
        del os.environ["NIGHTSCORE_CONFIG"]
    else:
        os.environ["NIGHTSCORE_CONFIG"] = before


def _uris(bucket: str) -> set[str]:
    return {f"{bucket}/streams/hostile/dt={NIGHT}/{name}" for name in FILES}


def test_every_image_is_listed_scored_or_rejected_under_its_own_name(night):
    bucket, counts = night
    assert (counts["discovered"], counts["scored"], counts["rejected"]) == (10, 7, 3)
    with transaction() as session:
        stored = session.execute(
            sa.text("SELECT uri FROM nightscore.image WHERE stream = 'hostile'")
        ).scalars()
        assert set(stored) == _uris(bucket)
        classes = session.execute(
            sa.text("SELECT DISTINCT predicted_class FROM reporting.predictions"
                    " WHERE stream = 'hostile'")
        ).scalars()  # fmt: skip
        assert set(classes) <= set(CLASSES.values())


def test_a_snapshot_holds_the_names_as_they_are(night):
    with transaction() as session:
        uri = session.scalar(
            sa.text("SELECT snapshot_uri FROM reporting.model_versions WHERE model = 'hostile'")
        )
    loaded = snapshot.load_snapshot(uri)
    assert set(loaded.classes) == set(CLASSES.values())
    assert {row.uri.rsplit("/", 1)[1] for row in loaded.rows} == {
        f"{number} {DROP}.png" for number in range(60)
    }


class _Tags(HTMLParser):
    """What a browser would make of a page: its elements and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.sources: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.sources |= {str(value)[:5] for name, value in attributes if name in ("src", "href")}


def test_the_report_shows_the_names_and_runs_none(night):
    tags = _Tags(nightly.read(runs.newest_run("hostile", NIGHT)))
    assert "img" in tags.elements
    assert not tags.elements & {"script", "svg", "iframe", "object", "a"}
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert tags.sources == {"data:"}


def _nightscore(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "nightscore", *arguments],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")},
    )


def test_the_command_sql_gives_them_to_machines_whole_and_to_terminals_harmless(night):
    bucket, _ = night
    query = (
        "SELECT image_uri FROM reporting.predictions WHERE stream = 'hostile' UNION ALL"
        " SELECT image_uri FROM reporting.rejected_images WHERE stream = 'hostile'"
    )
    rows = json.loads(_nightscore("sql", query, "--json").stdout)
    assert {row["image_uri"] for row in rows} == _uris(bucket)
    printed = _nightscore("sql", query)
    assert printed.returncode == 0
    assert not set(printed.stdout) & {"\x1b", "\x9b", "\u202e"}
    assert r"\x9b31mred" in printed.stdout
    assert "DROP TABLE" in printed.stdout


@pytest.mark.parametrize(
    "name", [f"x{DROP}", "x' OR name LIKE '%", "../../hostile", "hostile\n", ""]
)
def test_a_command_on_a_model_refuses_what_cannot_be_its_name(night, name):
    with pytest.raises(DataError, match="is not the name of a model"):
        versions.list_versions(name)
    for arguments in (
        ("promote", name, "1"),
        ("rollback", name),
        ("evaluate", f"{name}@champion", "--data", "."),
    ):
        # Explained in a line, as every such error is (tests/unit/cli/test_cli.py).
        with pytest.raises(NightscoreError):
            command()(list(arguments), standalone_mode=False)
    assert versions.list_versions("hostile") == [1]


def test_nothing_was_dropped_and_nothing_lies_beside_its_place(night):
    bucket, _ = night
    with transaction() as session:
        assert session.scalar(sa.text("SELECT count(*) FROM nightscore.image")) >= len(FILES)
    uris = {listed.uri for page in object_store().list_pages(bucket) for listed in page}
    assert {uri for uri in uris if "/streams/" in uri} == _uris(bucket)
