"""The tables and views: what the code says of them, what the analyst is promised, what docs show."""

import re
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ml.database.connection import analyst_engine, engine
from ml.database.copying import copy
from ml.database.migrate import migrate
from ml.database.tables import Base
from ml.errors import DataError, ServiceError

REPOSITORY = Path(__file__).parents[3]

# What the design promises of each view; a view may have more.
PROMISED = {
    "nightly_summary": "stream night run_id status discovered scored rejected anomalies anomaly_rate images_per_second started_at finished_at",
    "predictions": "stream night image_uri model version predicted_class confidence scored_at",
    "anomalies": "stream night image_uri model version score threshold heatmap_uri scored_at",
    "class_mix": "stream night model version predicted_class images share",
    "rejected_images": "stream night image_uri reason detail",
    "model_versions": "model version alias task metrics threshold registered_at promoted_at gate_metric gate_value gate_champion_value gate_difference gate_lower_bound gate_checks",
    "review": "stream night image_uri model version novelty novelty_threshold score flagged scored_at",
    "score_drift": "stream night model version reference psi alarm",
}  # fmt: skip


def test_the_tables_are_what_the_migrations_make(store_and_database):
    def include_name(name, kind, parent):
        if kind == "schema":
            return name == "nightscore"
        # Partitions of a night are made when it is scored.
        return not (kind == "table" and re.search(r"_\d{8}$|^alembic_version$|^kept$", name))

    def include_object(item, name, kind, reflected, other):
        return kind not in ("index", "unique_constraint") and (
            kind != "table" or not re.search(r"_\d{8}$|^alembic_version$", name)
        )

    with engine().connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": include_name,
                "include_object": include_object,
                "compare_type": True,
                "target_metadata": Base.metadata,
            },
        )
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_and_at_the_same_time_changes_nothing(store_and_database):
    errors: list[BaseException] = []

    def run() -> None:
        try:
            migrate()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_every_view_has_the_promised_columns(store_and_database):
    with analyst_engine().connect() as connection:
        for view, columns in PROMISED.items():
            names = connection.execute(sa.text(f"SELECT * FROM reporting.{view} LIMIT 0")).keys()
            assert set(columns.split()) <= set(names), view


def test_every_view_and_column_has_a_comment(store_and_database):
    with analyst_engine().connect() as connection:
        bare = connection.execute(
            sa.text(
                "SELECT c.relname, a.attname FROM pg_class c"
                " JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'reporting'"
                " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum >= 0 AND NOT a.attisdropped"
                " WHERE c.relkind IN ('v', 'm') AND col_description(c.oid, a.attnum) IS NULL"
                " UNION ALL SELECT c.relname, '' FROM pg_class c"
                " JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'reporting'"
                " WHERE c.relkind IN ('v', 'm') AND obj_description(c.oid, 'pg_class') IS NULL"
            )
        ).all()
    assert bare == []


def test_what_stops_a_copy_is_named(store_and_database):
    def rows(stop):
        yield from ((number,) for number in range(100_000))
        stop()
        yield from ((number,) for number in range(1_000_000))

    def an_outage_of_the_source():
        raise DataError("made to fail")

    with engine().connect() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE numbers (number int)")
        with pytest.raises(DataError, match="made to fail"):
            copy(connection, "numbers", ["number"], rows(an_outage_of_the_source))
        connection.rollback()

    def the_server_ends_the_session():
        with engine().connect() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": backend})

    with (
        pytest.raises(ServiceError, match=r"Postgres failed at 127\.0\.0\.1"),
        engine().connect() as connection,
    ):
        connection.exec_driver_sql("CREATE TEMPORARY TABLE numbers (number int)")
        backend = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        copy(connection, "numbers", ["number"], rows(the_server_ends_the_session))


def _documented() -> list[tuple[str, str]]:
    blocks = []
    for path in (REPOSITORY / "README.md", REPOSITORY / "docs" / "sql.md"):
        for block in re.findall(r"```sql\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            blocks += [(path.name, one.strip()) for one in block.split(";") if one.strip()]
    return blocks


@pytest.mark.parametrize(("file", "query"), _documented())
def test_the_queries_of_the_documentation_run_as_the_analyst(store_and_database, file, query):
    with analyst_engine().connect() as connection:
        result = connection.exec_driver_sql(query, execution_options={"no_parameters": True})
        assert result.keys()
        result.all()


def test_a_query_for_a_night_reads_that_night_s_partition_only(store_and_database):
    with engine().begin() as connection:
        for day in (1, 2, 3):
            connection.execute(sa.text(f"SELECT nightscore.ensure_night('2002-01-0{day}')"))
        plan = connection.execute(
            sa.text("EXPLAIN SELECT * FROM reporting.predictions WHERE night = '2002-01-02'")
        )
        text = "\n".join(row[0] for row in plan)
    assert "prediction_20020102" in text
    assert "prediction_20020101" not in text
    assert "image_20020103" not in text
