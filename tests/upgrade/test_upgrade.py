"""A user updates the checkout and goes on with the state folder that an earlier release made.

The tests of a state follow one another on it, as days do. README.md says what is kept of a state.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from sqlalchemy import make_url

from tests.support import stacks
from tests.support.command import nightscore, query
from tests.upgrade import state
from tests.upgrade.state import Server, State

STATES = state.states()
# What two processors may differ by, with room to spare: a version's score is its own to 0.01.
ROUNDING = 1e-3
# The nights that today's code scores: after those of every state, and too far apart for one to look
# back at another.
AS_CHAMPION, ELSEWHERE, ROLLED_BACK = "2026-03-01", "2026-04-01", "2026-05-01"
# The nights of which the release opened a run before the migration.
FINISHED_BY_IT, FINISHED_TODAY = "2026-06-01", "2026-07-01"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Upgraded:
    """A stack of today's code on a state folder of an earlier release.

    Attributes:
        state: What the release left.
        home: The state folder.
        elsewhere: The state folder of another machine, which reaches the same services and has
            no copies of programs.
        server: The stack's Postgres.
        tables_of_a_new_stack: What today's migrations make of an empty database.
        upgraded_tables: What they make of the release's.
        code: The folder of the release's own code.
        begun: Night → the run that the release opened before the migration.
    """

    state: State
    home: Path
    elsewhere: Path
    server: Server
    tables_of_a_new_stack: str
    upgraded_tables: str
    code: Path
    begun: dict[str, str]

    def recorded(self, view: str) -> Rows:
        """Return the rows of a reporting view that an analyst saw in the release."""
        found: Rows = self.state.read("reporting.json")[view]
        return found

    @property
    def nights(self) -> dict[str, dict[str, str]]:
        """The release's nights, each with the version of each model that scored it."""
        return {
            row["night"]: dict(part.split("/") for part in row["versions"].split(", "))
            for row in self.recorded("nightly_summary")
        }

    @property
    def stream(self) -> str:
        """The release's only stream."""
        (stream,) = {row["stream"] for row in self.recorded("nightly_summary")}
        return str(stream)

    def version(self, alias: str) -> dict[str, str]:
        """Return the version of each model that an alias named in the release."""
        return {
            row["model"]: str(row["version"])
            for row in self.recorded("model_versions")
            if alias in (row["alias"] or "").split(", ")
        }

    def aliases(self, alias: str) -> dict[str, str]:
        """Return the version of each model that an alias names now."""
        rows = query(self.home, "SELECT model, version, alias FROM reporting.model_versions")
        named = [row for row in rows if alias in (row["alias"] or "").split(", ")]
        return {row["model"]: str(row["version"]) for row in named}


@pytest.fixture(scope="module", params=STATES, ids=str)
def upgraded(request, tmp_path_factory) -> Iterator[Upgraded]:
    """Start today's stack on a release's state, as `nightscore up` does after an update."""
    release: State = request.param
    home = tmp_path_factory.mktemp("upgrade") / ".nightscore"
    elsewhere = home.with_name("elsewhere")
    passwords = release.write(home, stacks.ports())
    try:
        # Postgres's data are kept as a dump. A new server is given it before MLflow starts; the
        # second `up` then finds what it would find in the release's own data folder.
        nightscore("up", "--only", "postgres", home=home)
        address = make_url(dotenv_values(home / "stack.env")["NIGHTSCORE_ANALYST_URL"] or "")
        server = Server(address.port or 0, passwords["postgres"])
        of_a_new_stack = server.tables()
        release.restore(server, passwords)
        # What migrates is started last, so that the release still has its own tables.
        nightscore("up", "--only", "s3,mlflow", home=home)
        code = home.with_name("release")
        release.write_code(code)
        begun = {
            night: _begin_run(release, code, home, night)
            for night in (FINISHED_BY_IT, FINISHED_TODAY)
        }
        nightscore("migrate", home=home)
        elsewhere.mkdir(mode=0o700)
        (elsewhere / "stack.env").write_text((home / "stack.env").read_text())
        yield Upgraded(
            release, home, elsewhere, server, of_a_new_stack, server.tables(), code, begun
        )
    finally:
        nightscore("down", home=home)


def _begin_run(release: State, code: Path, home: Path, night: str) -> str:
    """Let a release bring in a night of its own pictures and open a run for it."""
    stream = next(row["stream"] for row in release.read("reporting.json")["nightly_summary"])
    with _code_of(code):
        nightscore("ingest", str(release.pictures), "--stream", stream, "--date", night, home=home)
        return nightscore("step", "open-run", stream, "--date", night, home=home).strip()


@contextmanager
def _code_of(folder: Path) -> Iterator[None]:
    """Let commands run another release's code, which comes before the one that is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


def test_the_states_are_found():
    """Without any, the tests below would pass and have tested nothing."""
    assert "0.1.0" in map(str, STATES)


@pytest.mark.parametrize("release", STATES, ids=str)
def test_a_released_migration_is_never_changed(release):
    """A database that ran it is never told of the change. A new file says what is to change."""
    released, current = release.sql("migrations"), state.migration_files()
    assert list(current)[: len(released)] == list(released)
    assert [name for name, content in released.items() if current[name] != content] == []


@pytest.mark.parametrize("release", STATES, ids=str)
def test_today_s_postgres_reads_the_release_s_data_folder(release):
    """A dump is read by any Postgres; the data folder of a user by its own major version only."""
    assert state.postgres_version() == release.read("release.json")["postgres"]


def test_the_tables_are_those_of_a_new_stack(upgraded):
    assert upgraded.upgraded_tables == upgraded.tables_of_a_new_stack


def test_champions_and_results_are_those_of_before(upgraded):
    assert upgraded.aliases("champion") == upgraded.version("champion")
    assert upgraded.aliases("previous") == upgraded.version("previous")
    for view in upgraded.state.read("reporting.json"):
        rows = [row for row in _rows_now(upgraded, view) if row.get("night") not in upgraded.begun]
        assert rows == _sorted(upgraded.recorded(view)), view


def test_the_old_champion_scores_a_new_night(upgraded):
    """By the copy of its program that the release left on this machine."""
    _score_a_new_night(upgraded, upgraded.home, AS_CHAMPION, upgraded.version("champion"))


def test_the_old_champion_scores_a_new_night_on_another_machine(upgraded):
    """By what the registry holds of it."""
    assert not list(upgraded.elsewhere.rglob("*.pt2"))
    _score_a_new_night(upgraded, upgraded.elsewhere, ELSEWHERE, upgraded.version("champion"))
    assert list(upgraded.elsewhere.rglob("*.pt2"))


def test_a_run_that_the_release_began_is_finished_by_its_own_code(upgraded):
    with _code_of(upgraded.code):
        printed = nightscore("--help", home=upgraded.home)
        _finish_run(upgraded, FINISHED_BY_IT)
    # It was the release's code: its help is not today's.
    assert printed != nightscore("--help", home=upgraded.home)


def test_a_run_that_the_release_began_is_finished_by_today_s_code(upgraded):
    _finish_run(upgraded, FINISHED_TODAY)


def test_an_old_night_is_not_scored_twice(upgraded):
    night, versions = max(upgraded.nights.items())
    assert versions == upgraded.aliases("champion")
    counts = _nightscore(upgraded.home, "score", upgraded.stream, "--date", night)
    assert (counts["discovered"], counts["scored"], counts["rejected"]) == (0, 0, 0)
    _assert_old_nights_are_unchanged(upgraded)


def test_an_old_report_is_written_again(upgraded):
    night = min(upgraded.nights)
    (run,) = [r for r in upgraded.recorded("nightly_summary") if r["night"] == night]
    assert run["run_id"] in _report(upgraded, run)


def test_a_rollback_returns_to_the_version_before_which_scores_the_next_night(upgraded):
    champion, previous = upgraded.version("champion"), upgraded.version("previous")
    for model in champion:
        done = _nightscore(upgraded.home, "rollback", model)
        assert done["changed"]
        assert (str(done["version"]), str(done["replaced"])) == (previous[model], champion[model])
    assert upgraded.aliases("champion") == previous
    _score_a_new_night(upgraded, upgraded.elsewhere, ROLLED_BACK, previous)
    _assert_old_nights_are_unchanged(upgraded)


def _nightscore(home: Path, *arguments: str) -> dict[str, Any]:
    """Run a command, which must succeed; return what it printed."""
    found: dict[str, Any] = json.loads(nightscore(*arguments, "--json", home=home))
    return found


def _score_a_new_night(
    upgraded: Upgraded, home: Path, night: str, versions: dict[str, str]
) -> None:
    """Score the pictures of the release's nights once more, as a night of now.

    Args:
        upgraded: The stack.
        home: The state folder of the machine that scores.
        night: A night that has no images yet.
        versions: The versions that have to score it, which have scored one before.
    """
    pictures, stream = upgraded.state.pictures, upgraded.stream
    _nightscore(home, "ingest", str(pictures), "--stream", stream, "--date", night)
    counts = _nightscore(home, "score", stream, "--date", night)
    _assert_scored(upgraded, night, versions, counts)


def _finish_run(upgraded: Upgraded, night: str) -> None:
    """Take the steps of a run that was opened before the migration, after it."""

    def step(*arguments: str) -> Any:
        return json.loads(nightscore("step", *arguments, home=upgraded.home))

    run = upgraded.begun[night]
    step("discover", run)
    for shard in step("plan-shards", run):
        step("score-shard", run, str(shard))
    counts = step("reconcile", run)
    report = nightscore("step", "report", run, home=upgraded.home).strip()
    _assert_scored(upgraded, night, upgraded.version("champion"), counts | {"report_uri": report})


def _assert_scored(
    upgraded: Upgraded, night: str, versions: dict[str, str], counts: dict[str, Any]
) -> None:
    """Check that a night of the release's pictures has the results that they had then.

    Args:
        upgraded: The stack.
        night: The night.
        versions: The versions that have scored it.
        counts: What the scoring returned.
    """
    names = {path.name for path in upgraded.state.pictures.iterdir()}
    assert counts["discovered"] == counts["scored"] + counts["rejected"] == len(names)
    (row,) = query(
        upgraded.home, f"SELECT * FROM reporting.nightly_summary WHERE night = '{night}'"
    )
    assert row["status"] == "finished"
    assert dict(part.split("/") for part in row["versions"].split(", ")) == versions
    assert (row["discovered"], row["scored"], row["rejected"]) == tuple(
        counts[name] for name in ("discovered", "scored", "rejected")
    )
    # The same decisions about the same pictures as then.
    before = next(then for then, by in upgraded.nights.items() if by == versions)
    now = _decisions(_rows_now(upgraded, "predictions", night))
    then = _decisions(r for r in upgraded.recorded("predictions") if r["night"] == before)
    assert now == then
    now = _reasons(_rows_now(upgraded, "rejected_images", night))
    assert now == _reasons(r for r in upgraded.recorded("rejected_images") if r["night"] == before)
    assert len(then) + len(now) == len(names) * len(versions)
    assert row["report_uri"] == counts["report_uri"]


def _report(upgraded: Upgraded, run: dict[str, Any]) -> str:
    """Write the page of a night's newest run again, which must be `run`, and return it."""
    page = upgraded.home.with_name("report.html")
    arguments = ("report", run["stream"], "--date", run["night"], "--output", str(page))
    assert _nightscore(upgraded.home, *arguments)["report_uri"] == run["report_uri"]
    return page.read_text(encoding="utf-8")


def _decisions(rows: Any) -> dict[tuple[str, str, int], Any]:
    """What each version said of each picture."""
    return {
        _key(row): (
            row["predicted_class"],
            row["flagged"],
            row["review"],
            *(
                row[name] if row[name] is None else pytest.approx(row[name], abs=ROUNDING)
                for name in ("confidence", "score", "threshold", "novelty")
            ),
        )
        for row in rows
    }


def _reasons(rows: Any) -> dict[tuple[str, str, int], str]:
    """Why each version rejected a picture."""
    return {_key(row): row["reason"] for row in rows}


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["image_uri"].rsplit("/", 1)[-1], row["model"], row["version"]


def _assert_old_nights_are_unchanged(upgraded: Upgraded) -> None:
    for view in ("predictions", "anomalies", "review", "rejected_images", "class_mix"):
        now = [row for night in upgraded.nights for row in _rows_now(upgraded, view, night)]
        assert _sorted(now) == _sorted(upgraded.recorded(view)), view
    runs = _rows_now(upgraded, "nightly_summary")
    assert [row for row in upgraded.recorded("nightly_summary") if row not in runs] == []


def _rows_now(upgraded: Upgraded, view: str, night: str | None = None) -> Rows:
    """The rows of a view, with the columns that it had in the release."""
    recorded = upgraded.recorded(view)
    columns = ", ".join(recorded[0]) if recorded else "*"
    where = f" WHERE night = '{night}'" if night else ""
    return _sorted(query(upgraded.home, f"SELECT {columns} FROM reporting.{view}{where}"))


def _sorted(rows: Rows) -> Rows:
    return sorted(rows, key=json.dumps)
