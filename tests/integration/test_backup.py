"""docs/backup.md, followed on a real installation: a backup in mid-night, then everything is lost.

The commands are those of the page. The servers before and after are two local stacks, which have
nothing in common but the passwords.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from ml.program.info import sha256
from ml.registry import programs, promotion, versions
from ml.registry.artifacts import cache_folder
from ml.registry.openvino_models import fetch_openvino_model
from ml.registry.registration import load_registration
from ml.retrain import steps as retrain
from ml.scoring import steps
from ml.stack import airflow_server, postgres
from ml.stack.layout import HOST, known_ports
from ml.stack.local import LocalStack
from ml.stack.process import package_folder
from ml.storage.object_store import object_store
from tests.support import evidence, night, stacks
from tests.support.evidence import query
from tests.support.night import Night
from tests.support.process import Scoring
from tests.support.registered import as_owner, changed_row

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "backup.md").read_text(encoding="utf-8")
SERVICES = ("postgres", "s3", "mlflow")
VIEWS = [path.stem.partition("_")[2] for path in (REPOSITORY / "ml/database/views").glob("*.sql")]
CHECK = "tools/backup.sh check /backups"
# One process does what `airflow db migrate` and `airflow connections` do, as each imports for seconds.
_AIRFLOW = """
import sys
from airflow.models import Connection
from airflow.utils import db
from airflow.utils.session import create_session
"""
_MIGRATE = """
db.upgradedb()
with create_session() as session:
    session.add(Connection(conn_id="results", uri=sys.argv[1]))
"""
_READ = """
with create_session() as session:
    print(session.query(Connection).filter_by(conn_id="results").one().get_uri())
"""
# Airflow encrypts it with its Fernet key.
CONNECTION = "postgres://somebody:a-password-of-airflow@db/results"
_LAST_SHARD = sa.text(
    "SELECT FROM nightscore.shard WHERE run_id = :run_id ORDER BY number DESC LIMIT 1 FOR UPDATE"
)


def commands(heading: str, number: int = 0) -> str:
    """A block of commands below a heading of the page."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[number]


class Operator:
    """Who backs up: a folder with the files that the page names, and its environment.

    Args:
        folder: gets these files; the backup is below it.
        stack: the installation; its Postgres and S3 run.
    """

    def __init__(self, folder: Path, stack: LocalStack) -> None:
        self.folder, self.backups = folder, folder.parent / "backups"
        folder.mkdir()
        (folder / "tools").symlink_to(REPOSITORY / "tools")
        passwords, ports = stack.layout.passwords, known_ports(stack.layout)
        roles = {role: passwords[key] for role, key in postgres.ROLES.items()}
        (folder / "roles.json").write_text(json.dumps(roles))
        (folder / "administrator").write_text(passwords["postgres"])
        (folder / "pgpass").write_text(f"*:*:*:postgres:{passwords['postgres']}\n")
        (folder / "pgpass").chmod(0o600)
        server = f"{HOST}:{ports['postgres']}/postgres"
        programs = (postgres.executable("psql").parent, package_folder("rclone_api") / "bin")
        path = (*programs, Path(sys.executable).parent, os.environ["PATH"])
        self.environment = os.environ | {
            "PATH": os.pathsep.join(map(str, path)),
            "RESULTS_SERVER": f"host={HOST} port={ports['postgres']} user=postgres",
            "PGPASSFILE": str(folder / "pgpass"),
            "NIGHTSCORE_ADMINISTRATOR_URL": f"postgresql+psycopg2://postgres@{server}",
            "AWS_ENDPOINT_URL": f"http://{HOST}:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": passwords["s3_key"],
            "AWS_SECRET_ACCESS_KEY": passwords["s3_secret"],
        }

    def run(self, block: str, *, fails: bool = False, **variables: str) -> str:
        """Run a block of the page; returns what it prints."""
        done = subprocess.run(
            ["sh", "-euc", block.replace("/backups", str(self.backups))],
            cwd=self.folder,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.returncode != 0) == fails, f"{block}\n{done.stdout}"
        return done.stdout


@dataclass
class Restored:
    """What was, and what is there again.

    Attributes:
        views: view → what it said of the nights that were finished, before.
        finished: these nights; the first was scored by version 1 of a model, the second by 2.
        open: the night that was being scored.
        stored: how many of its images the backup has results of.
        stack: the restored installation.
        operator: who restored it.
        refused: what the restore said to databases that were not empty.
        relations: how many tables and indexes each database had right after that.
    """

    views: dict[str, list[str]]
    finished: list[Night]
    open: Night
    stored: int
    stack: LocalStack
    operator: Operator
    refused: str
    relations: list[str]


def views_of(nights: list[Night]) -> dict[str, list[str]]:
    """What the views say of some nights, and of the versions."""
    dates = {each.date for each in nights}
    return {
        view: sorted(
            str([(name, comparable(value)) for name, value in row.items()])
            for row in query(f"SELECT * FROM reporting.{view}")
            if row.get("night") in {None, *dates}
        )
        for view in VIEWS
    }


def comparable(value: object) -> object:
    """A sum of numbers depends on the order of the rows, by a rounding error."""
    return f"{value:.9g}" if isinstance(value, float) else value


def score(tonight: Night) -> dict[str, Any]:
    return steps.score_night(tonight.stream, tonight.date.isoformat())


def airflow(stack: LocalStack, code: str) -> str:
    """Run code with Airflow's models, on the stack's database; returns what it prints."""
    variables = airflow_server.environment(stack.layout, known_ports(stack.layout))
    done = subprocess.run(
        [sys.executable, "-c", _AIRFLOW + code, CONNECTION],
        env={"PATH": os.environ["PATH"], "HOME": str(stack.layout.airflow), **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def use(patch: pytest.MonkeyPatch, stack: LocalStack) -> None:
    """Let this process, and those it starts, use a stack."""
    patch.setenv("NIGHTSCORE_HOME", str(stack.layout.home))
    stacks.forget_connections()


@pytest.fixture(scope="module")
def restored(shared_folder, tmp_path_factory, _clean_environment) -> Iterator[Restored]:
    folder = tmp_path_factory.mktemp("backup")
    (folder / "nightscore.yaml").write_text(stacks.CONFIGURATION.format(bucket=stacks.BUCKET))
    first, second = LocalStack(folder / "first"), LocalStack(folder / "second")
    stacks.copy_of_trained(shared_folder, first.layout.home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTSCORE_CONFIG", str(folder / "nightscore.yaml"))
        try:
            use(patch, first)
            first.up(SERVICES, ports=stacks.ports())
            with ThreadPoolExecutor(1) as pool:
                migration = pool.submit(airflow, first, _MIGRATE)
                finished, tonight = make_history()
                migration.result()
            before = views_of(finished)
            back_up_in_mid_night(Operator(folder / "operator", first), tonight)
            secrets = (first.layout.conf / "passwords.json").read_text()
            lose(first)

            second.layout.make()
            second.layout.write(second.layout.conf / "passwords.json", secrets)
            use(patch, second)
            second.up(("postgres", "s3"), ports=stacks.ports())
            operator = Operator(folder / "another", second)
            refused = operator.run(commands("Restore"), fails=True)
            relations = relations_of_databases(operator)
            operator.run(commands("Restore", 1))
            operator.run(commands("Restore"))
            second.up(SERVICES)
            stacks.forget_connections()
            stored = len(results_of(tonight))
            yield Restored(before, finished, tonight, stored, second, operator, refused, relations)
        finally:
            first.down()
            second.down()
    stacks.forget_connections()


def make_history() -> tuple[list[Night], Night]:
    """Score a night with each of two versions; returns them, and a night that is not scored."""
    nights = [night.make(images=40), night.make(images=40)]
    score(nights[0])
    version = retrain.retrain("shades")["version"]
    promotion.promote("shades", version, reason="for this test", by="test")
    score(nights[1])
    return nights, night.make(images=400)


def back_up_in_mid_night(operator: Operator, tonight: Night) -> None:
    """Dump the databases while shards are scored, and copy the objects while new ones come."""
    dump, *others = commands("Back up", 1).splitlines()
    scoring = Scoring(tonight)
    scoring.go()
    evidence.wait_for(lambda: shards_of(tonight))
    with as_owner() as session:
        # The last shard has to wait until the dump is made, however fast the machine is.
        session.execute(_LAST_SHARD, {"run_id": shards_of(tonight)[-1]["run_id"]})
        evidence.wait_for(lambda: results_of(tonight))
        operator.run(dump)
    operator.run("\n".join(others))
    scoring.finish()


def shards_of(tonight: Night) -> list[dict[str, Any]]:
    return query(
        "SELECT run_id, number FROM nightscore.shard JOIN nightscore.scoring_run USING (run_id)"
        " WHERE night = :n ORDER BY number",
        n=tonight.date,
    )


def lose(stack: LocalStack) -> None:
    """The machine is gone, with all that was on it."""
    processes = stack.supervisor.processes()
    assert len(processes) > len(SERVICES)
    for process in processes:
        process.kill()
    psutil.wait_procs(processes)
    shutil.rmtree(stack.layout.home)


def results_of(tonight: Night) -> set[str]:
    """The URIs of the images of a night that have a result by every model, or are rejected."""
    rows = query(
        "SELECT image_uri, count(DISTINCT model) AS models FROM reporting.predictions"
        " WHERE stream = :s AND night = :n GROUP BY image_uri",
        s=tonight.stream,
        n=tonight.date,
    )
    return {row["image_uri"] for row in rows if row["models"] == len(stacks.MODELS)}


def relations_of_databases(operator: Operator) -> list[str]:
    """How many tables and indexes each database has."""
    counting = 'psql -XAtq -d "$RESULTS_SERVER dbname={}" -c "SELECT count(*) FROM pg_class WHERE'
    counting += " relnamespace::regnamespace::text !~ '^(pg_|information_schema)'\""
    databases = ("nightscore", "airflow", "mlflow", "mlflow_auth")
    return [operator.run(counting.format(name)).strip() for name in databases]


def test_the_backup_was_taken_while_the_night_was_scored(restored):
    assert 0 < restored.stored < len(restored.open.uris - restored.open.broken)
    (run,) = query("SELECT status FROM reporting.nightly_summary WHERE night = :n",
                   n=restored.open.date)  # fmt: skip
    assert run["status"] == "open"


def test_a_restore_to_databases_that_are_not_empty_is_refused_and_changes_nothing(restored):
    assert "The database nightscore is not empty. Nothing is restored." in restored.refused
    assert restored.relations[0] != "0"
    assert restored.relations[1:] == ["0", "0", "0"]
    before = relations_of_databases(restored.operator)
    again = restored.operator.run(commands("Restore"), fails=True)
    assert "The database airflow is not empty. Nothing is restored." in again
    assert relations_of_databases(restored.operator) == before


def test_the_views_give_the_same_answers(restored):
    assert views_of(restored.finished) == restored.views
    assert all(restored.views[view] for view in ("predictions", "anomalies", "score_drift"))


def test_every_version_is_there_with_the_program_that_was_recorded(restored):
    for model, count in (("shades", 2), ("moulds", 1)):
        assert versions.list_versions(model) == list(range(1, count + 1))
        for version in versions.list_versions(model):
            registration = load_registration(model, version)
            assert not cache_folder(registration).exists()
            path, _ = programs.fetch(registration)
            assert sha256(path) == registration.sha256
            assert fetch_openvino_model(registration)


def test_airflow_reads_its_connection_with_the_key_of_before(restored):
    assert airflow(restored.stack, _READ).splitlines()[-1] == CONNECTION


def test_a_night_that_was_finished_is_not_scored_again(restored):
    assert score(restored.finished[1])["discovered"] == 0  # the champion has scored it before


def test_the_night_that_was_open_is_completed_with_nothing_lost_or_twice(restored):
    counts = score(restored.open)
    assert 0 < counts["discovered"] < len(restored.open.uris)
    found = evidence.of_complete_night(restored.open)
    assert found.is_clean, found
    runs = query(
        "SELECT status FROM reporting.nightly_summary WHERE night = :n ORDER BY started_at",
        n=restored.open.date,
    )
    assert [run["status"] for run in runs] == ["failed", "finished"]


def test_the_champion_scores_and_after_a_rollback_the_version_before_it(restored):
    for version in (2, 1):
        assert promotion.champion("shades") == version
        tonight = night.make(images=40)
        score(tonight)
        found = evidence.of_complete_night(tonight)
        assert found.is_clean, found
        (run,) = query(
            "SELECT versions FROM reporting.nightly_summary WHERE night = :n", n=tonight.date
        )
        assert f"shades/{version}" in run["versions"]
        promotion.rollback("shades", reason="for this test", by="test")


@pytest.fixture
def moved_away(restored) -> Iterator[Callable[[str], Path]]:
    """Moves a file of the backup away, given a pattern; it returns afterwards."""
    moved: list[Path] = []

    def move(pattern: str) -> Path:
        moved.append(next(restored.operator.backups.glob(pattern)))
        moved[-1].rename(restored.operator.folder / "away")
        return moved[-1]

    yield move
    (restored.operator.folder / "away").replace(moved[-1])


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("objects/mlflow/**/model.pt2", "program of "),
        ("objects/mlflow/**/openvino/*.zip", "OpenVINO form of "),
        ("objects/nightscore/**/heatmaps/**/*.jpg", "/heatmaps/"),
    ],
)
def test_the_check_names_an_object_that_the_backup_lacks(restored, moved_away, pattern, name):
    path = moved_away(pattern)
    said = restored.operator.run(CHECK, fails=True)
    assert name in said
    assert path.stem in said or "SHA-256" in said
    assert "is whole" in restored.operator.run(CHECK, MAY_BE_MISSING=name)


def test_a_damaged_dump_is_never_restored(restored, moved_away):
    path = moved_away("databases/*/mlflow.dump")
    away = restored.operator.folder / "away"
    path.write_bytes(away.read_bytes()[:-1000])
    for command in (CHECK, "tools/backup.sh restore-databases /backups"):
        assert "is damaged" in restored.operator.run(command, fails=True)


def test_a_pair_of_dumps_that_disagree_about_the_champion_is_not_kept(restored):
    dumps = sorted(restored.operator.backups.glob("databases/*"))
    champion = promotion.champion("shades")
    assert champion is not None
    with changed_row("shades", champion):
        said = restored.operator.run("tools/backup.sh databases /backups", fails=True)
    assert f"It is about: shades/{champion}" in said
    assert sorted(restored.operator.backups.glob("databases/*")) == dumps
    assert not list(restored.operator.backups.glob("databases/.*"))


def test_a_restore_of_objects_adds_what_is_missing_and_changes_nothing(restored):
    deleted, changed = sorted(restored.finished[0].uris)[:2]
    before, _ = object_store().get(changed)
    object_store().delete([deleted])
    restored.operator.run("tools/backup.sh restore-objects /backups")
    assert object_store().exists(deleted)
    object_store().put(changed, b"newer")
    said = restored.operator.run("tools/backup.sh restore-objects /backups", fails=True)
    assert changed.rpartition("/")[2] in said
    assert object_store().get(changed)[0] == b"newer"
    object_store().put(changed, before)
