"""What each role of Postgres may do, tried with the role itself."""

from importlib import resources

import psycopg2
import pytest
import sqlalchemy as sa
from psycopg2.errors import InsufficientPrivilege

from ml.database.roles import DATABASES
from ml.stack import postgres
from ml.stack.layout import HOST, known_ports

PARTITIONED = "image", "prediction", "rejection"
READ_AND_ADD = {"SELECT", "INSERT"}
# Table → what the writer may do with it; a new table needs a line here and in ml/database/sql/grants.sql.
WRITER = {
    "camera": {"SELECT", "INSERT"},
    "class_sum": {"SELECT"},
    "score_sum": {"SELECT"},
    "rejection_sum": {"SELECT"},
    "alembic_version": {"SELECT"},
    "image": READ_AND_ADD,
    "manifest": READ_AND_ADD,
    "prediction": READ_AND_ADD,
    "scoring_run_model": READ_AND_ADD,
    "promotion": READ_AND_ADD,
    "scoring_run": READ_AND_ADD | {"UPDATE"},
    "shard": READ_AND_ADD | {"UPDATE"},
    "model_version": READ_AND_ADD | {"UPDATE"},
    "model_alias": READ_AND_ADD | {"UPDATE"},
    "rejection": READ_AND_ADD | {"UPDATE", "DELETE"},
    "maintenance": set(),
}


# What the maintainer decides by; the rows that it deletes are in tables of its own.
MAINTAINER_READS = (
    "alembic_version",
    "scoring_run",
    "scoring_run_model",
    "model_version",
    "model_alias",
)


@pytest.fixture
def login(store_and_database):
    """Connects as a role: `login(role, database)`; each statement is a transaction of its own."""
    stack, opened = store_and_database, []

    def connect(role: str, database: str = "nightscore"):
        password = stack.layout.passwords[{**postgres.ROLES, "postgres": "postgres"}[role]]
        connection = psycopg2.connect(
            host=HOST,
            port=known_ports(stack.layout)["postgres"],
            user=role,
            password=password,
            dbname=database,
        )
        connection.autocommit = True
        opened.append(connection)
        return connection.cursor()

    yield connect
    for connection in opened:
        connection.close()


@pytest.mark.parametrize("role", postgres.ROLES)
def test_a_role_connects_to_its_own_databases_only(login, role):
    own = {name for name, (owner, others) in DATABASES.items() if role in (owner, *others)}
    assert own
    for database in (*DATABASES, "postgres", "template1"):
        if database in own:
            login(role, database).execute("SELECT 1")
        else:
            with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
                login(role, database)


def test_no_role_is_more_than_a_login(login):
    cursor = login("postgres")
    cursor.execute(
        "SELECT rolname FROM pg_roles WHERE rolname <> 'postgres' AND rolcanlogin"
        " AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)"
    )
    assert {name for (name,) in cursor} == set(postgres.ROLES)
    cursor.execute("SELECT member::regrole::text, roleid::regrole::text FROM pg_auth_members"
                   " WHERE member::regrole::text = ANY (%s)", [list(postgres.ROLES)])  # fmt: skip
    # It migrates the tables that the maintainer owns.
    assert cursor.fetchall() == [("nightscore_owner", "nightscore_maintainer")]


def test_every_way_in_asks_for_a_password(login):
    cursor = login("postgres")
    cursor.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules")
    assert cursor.fetchall() == [("scram-sha-256",)]
    cursor.execute("SELECT rolname FROM pg_authid WHERE rolcanlogin"
                   " AND rolpassword NOT LIKE 'SCRAM-SHA-256$%'")  # fmt: skip
    assert cursor.fetchall() == []


class TestWriter:
    def test_it_may_do_with_each_table_what_the_code_does_and_no_more(self, login):
        cursor = login("postgres")
        cursor.execute(
            "SELECT relname, array_agg(privilege) FILTER"
            " (WHERE has_table_privilege('nightscore_writer', pg_class.oid, privilege))"
            " FROM pg_class, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER,"
            "MAINTAIN}'::text[]) AS privilege"
            " WHERE relnamespace = 'nightscore'::regnamespace AND relkind IN ('r', 'p')"
            " AND NOT relispartition GROUP BY relname"
        )
        assert {table: set(privileges or ()) for table, privileges in cursor} == WRITER

    def test_of_the_audit_only_the_state_of_a_change_can_be_changed(self, login):
        cursor = login("postgres")
        cursor.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'nightscore.promotion'::regclass"
            " AND attnum > 0 AND NOT attisdropped AND has_column_privilege("
            "'nightscore_writer', attrelid, attname, 'UPDATE')"
        )
        assert {name for (name,) in cursor} <= {"state"}

    def test_of_an_image_only_the_camera_can_be_changed(self, login):
        cursor = login("postgres")
        cursor.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'nightscore.image'::regclass"
            " AND attnum > 0 AND has_column_privilege("
            "'nightscore_writer', attrelid, attname, 'UPDATE')"
        )
        assert cursor.fetchall() == [("camera_id",)]

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM nightscore.promotion",
            "UPDATE nightscore.promotion SET reason = 'another'",
            "UPDATE nightscore.prediction SET flagged = false",
            "DELETE FROM nightscore.prediction",
            "DELETE FROM nightscore.image",
            "UPDATE nightscore.alembic_version SET version_num = 'x'",
            "UPDATE nightscore.scoring_run_model SET version = 1",
            "TRUNCATE nightscore.rejection",
            "DROP TABLE nightscore.prediction",
            "ALTER TABLE nightscore.image ADD COLUMN mine int",
            "CREATE TABLE nightscore.mine (x int)",
            "CREATE TABLE public.mine (x int)",
            "CREATE SCHEMA mine",
            "CREATE OR REPLACE VIEW reporting.predictions AS SELECT 1",
            "INSERT INTO nightscore.prediction_19990101 SELECT * FROM nightscore.prediction",
            "SELECT * FROM nightscore.prediction_19990101",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT * FROM pg_authid",
        ],
    )
    def test_it_is_refused(self, login, statement):
        cursor = login("nightscore_writer")
        cursor.execute("SELECT nightscore.ensure_night('1999-01-01')")
        with pytest.raises(InsufficientPrivilege):
            cursor.execute(statement)

    def test_rights_that_an_earlier_version_gave_are_taken_back(self, login):
        from ml.database.migrate import migrate

        login("nightscore_writer").execute("SELECT nightscore.ensure_night('1999-01-02')")
        owner = login("nightscore_owner")
        owner.execute(
            "GRANT ALL ON nightscore.promotion, nightscore.prediction,"
            " nightscore.prediction_19990102 TO nightscore_writer"
        )
        migrate()
        for table in ("promotion", "prediction", "prediction_19990102"):
            with pytest.raises(InsufficientPrivilege):
                login("nightscore_writer").execute(f"DELETE FROM nightscore.{table}")

    def test_what_it_makes_in_its_own_schema_does_not_mislead_the_owner_s_function(self, login):
        cursor = login("nightscore_writer")
        for statement in (
            "CREATE TEMPORARY TABLE pg_class (relname name, relnamespace regnamespace)",
            "CREATE FUNCTION pg_temp.hashtext(text) RETURNS int LANGUAGE sql AS 'SELECT 1 / 0'",
            "CREATE FUNCTION pg_temp.format(text, text, text) RETURNS text LANGUAGE sql"
            " AS $$SELECT 'another'$$",
            "SET search_path = pg_temp, pg_catalog",
            "SELECT nightscore.ensure_night('1999-01-03')",
        ):
            cursor.execute(statement)
        cursor.execute("SELECT to_regclass('nightscore.prediction_19990103') IS NOT NULL")
        assert cursor.fetchone() == (True,)

    def test_every_function_with_its_owner_s_rights_names_where_it_looks(self, login):
        cursor = login("postgres")
        cursor.execute("SELECT proname, proconfig FROM pg_proc WHERE prosecdef"
                       " AND pronamespace::regnamespace::text IN ('nightscore', 'reporting')")  # fmt: skip
        settings = dict(cursor.fetchall())
        assert settings
        paths = {setting[0] for setting in settings.values()}
        assert paths == {"search_path=pg_catalog, pg_temp"}


class TestMaintainer:
    def test_it_owns_the_tables_by_night_and_none_of_their_partitions(self, login):
        login("nightscore_writer").execute("SELECT nightscore.ensure_night('1999-01-04')")
        cursor = login("postgres")
        cursor.execute(
            "SELECT relname, relkind FROM pg_class WHERE relowner = 'nightscore_maintainer'::regrole"
            " AND relkind IN ('r', 'p', 'v', 'm')"
        )
        assert set(cursor) == {(name, "p") for name in (*PARTITIONED, "manifest")}

    def test_it_may_read_what_it_decides_by_and_change_nothing_else(self, login):
        cursor = login("postgres")
        cursor.execute(
            "SELECT relname, array_agg(privilege)"
            " FROM pg_class, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER,"
            "MAINTAIN}'::text[]) AS privilege"
            " WHERE relnamespace = 'nightscore'::regnamespace AND relkind IN ('r', 'p')"
            " AND NOT relispartition AND relowner <> 'nightscore_maintainer'::regrole"
            " AND has_table_privilege('nightscore_maintainer', pg_class.oid, privilege)"
            " GROUP BY relname"
        )
        assert {table: set(privileges) for table, privileges in cursor} == {
            **{name: {"SELECT"} for name in MAINTAINER_READS},
            "maintenance": READ_AND_ADD,
        }

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT reason FROM nightscore.promotion",
            "UPDATE nightscore.promotion SET state = 'done'",
            "UPDATE nightscore.model_version SET gate_passed = true",
            "UPDATE nightscore.model_alias SET version = 1",
            "DELETE FROM nightscore.promotion",
            "DELETE FROM nightscore.scoring_run",
            "DELETE FROM nightscore.model_version",
            "DELETE FROM nightscore.class_sum",
            "UPDATE nightscore.class_sum SET images = 0",
            "DELETE FROM nightscore.maintenance",
            "UPDATE nightscore.maintenance SET reason = 'another'",
            "DROP TABLE nightscore.prediction_19990104",
            "DROP TABLE nightscore.promotion",
            "CREATE TABLE nightscore.mine (x int)",
            "CREATE TABLE public.mine (x int)",
            "CREATE TEMPORARY TABLE mine (x int)",
            "SET ROLE nightscore_owner",
            "SELECT nightscore.sum_night('line', '1999-01-04')",
        ],
    )
    def test_it_is_refused(self, login, statement):
        login("nightscore_writer").execute("SELECT nightscore.ensure_night('1999-01-04')")
        with pytest.raises(InsufficientPrivilege):
            login("nightscore_maintainer").execute(statement)

    @pytest.mark.parametrize("name", ["promotion", "prediction_19990104", "x; DROP TABLE y"])
    def test_it_drops_only_what_was_detached_from_a_table_by_night(self, login, name):
        login("nightscore_writer").execute("SELECT nightscore.ensure_night('1999-01-04')")
        with pytest.raises(psycopg2.errors.RaiseException):
            login("nightscore_maintainer").execute("SELECT nightscore.drop_detached(%s)", [name])

    def test_the_owner_can_still_change_the_tables_by_night(self, login):
        owner = login("nightscore_owner")
        owner.execute("ALTER TABLE nightscore.image ADD COLUMN tried int")
        owner.execute("CREATE INDEX tried ON nightscore.image (tried)")
        owner.execute("SELECT to_regclass('nightscore.tried') IS NOT NULL")
        assert owner.fetchone() == (True,)
        owner.execute("ALTER TABLE nightscore.image DROP COLUMN tried")
        owner.execute("SELECT to_regclass('nightscore.tried') IS NOT NULL")
        assert owner.fetchone() == (False,)


class TestAnalyst:
    def test_it_may_select_from_the_views_and_use_nothing_else(self, login):
        cursor = login("postgres")
        cursor.execute(
            "SELECT relnamespace::regnamespace::text || '.' || relname, relkind, privilege"
            " FROM pg_class, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER,"
            "MAINTAIN}'::text[]) AS privilege"
            " WHERE relkind IN ('r', 'p', 'v', 'm', 'f')"
            " AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')"
            " AND has_table_privilege('nightscore_analyst', pg_class.oid, privilege)"
        )
        grants = cursor.fetchall()
        assert {kind for _, kind, _ in grants} == {"v"}
        assert {privilege for _, _, privilege in grants} == {"SELECT"}
        assert {name.split(".")[0] for name, _, _ in grants} == {"reporting"}
        views = resources.files("ml.database") / "views"
        assert len(grants) == len(list(views.iterdir()))
        analyst = login("nightscore_analyst")
        for name, _, _ in grants:
            analyst.execute(f"SELECT * FROM {name} LIMIT 1")

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT * FROM nightscore.prediction",
            "SELECT nightscore.ensure_night('2026-01-01')",
            "CREATE TABLE public.mine (x int)",
            "CREATE TABLE reporting.mine (x int)",
            "CREATE TEMPORARY TABLE mine (x int)",
            "CREATE SCHEMA mine",
            "CREATE EXTENSION dblink",
            "CREATE EXTENSION pg_trgm",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "COPY (SELECT 1) TO '/tmp/mine'",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT pg_ls_dir('.')",
            "SELECT lo_import('/etc/passwd')",
            "SELECT lo_create(0)",
            "SELECT lo_creat(0)",
            "SELECT lo_from_bytea(0, 'mine')",
            "SELECT * FROM pg_authid",
            "SELECT * FROM pg_shadow",
            "ALTER ROLE nightscore_analyst SET temp_file_limit = -1",
            "ALTER ROLE nightscore_analyst CONNECTION LIMIT -1",
            "SET temp_file_limit = -1",
            "SET SESSION AUTHORIZATION nightscore_writer",
            "SET ROLE nightscore_writer",
            "ALTER ROLE nightscore_writer PASSWORD 'mine'",
            "SELECT pg_reload_conf()",
        ],
    )
    def test_it_is_refused(self, login, statement):
        with pytest.raises(InsufficientPrivilege):
            login("nightscore_analyst").execute(statement)

    @pytest.mark.parametrize(
        "call",
        [
            "pg_advisory_lock(1)",
            "pg_advisory_lock(1, 1)",
            "pg_advisory_xact_lock(hashtext('merge'), hashtext('line'))",
            "pg_advisory_lock_shared(1)",
            "pg_advisory_xact_lock_shared(1)",
            "pg_try_advisory_lock(1)",
            "pg_try_advisory_xact_lock(1)",
            "pg_try_advisory_lock_shared(1)",
            "pg_advisory_unlock_all()",
        ],
    )
    def test_it_cannot_hold_a_lock_that_the_night_waits_for(self, login, call):
        with pytest.raises(InsufficientPrivilege):
            login("nightscore_analyst").execute(f"SELECT {call}")

    def test_the_writer_and_the_owner_can_take_those_locks(self, login):
        for role in ("nightscore_writer", "nightscore_owner"):
            cursor = login(role)
            cursor.execute("SELECT pg_try_advisory_xact_lock(hashtext('merge'), hashtext('x'))")
            assert cursor.fetchone() == (True,)

    def test_a_query_that_runs_away_ends(self, login):
        cursor = login("nightscore_analyst")
        limits = {}
        for name in ("statement_timeout", "idle_in_transaction_session_timeout", "temp_file_limit"):
            cursor.execute(f"SHOW {name}")
            limits[name] = cursor.fetchone()[0]
        assert limits == {
            "statement_timeout": "10min",
            "idle_in_transaction_session_timeout": "10min",
            "temp_file_limit": "4GB",
        }
        cursor.execute("SET statement_timeout = '100ms'")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            cursor.execute("SELECT count(*) FROM generate_series(1, 1000000000)")

    def test_it_cannot_use_up_the_connections(self, login):
        with pytest.raises(psycopg2.OperationalError, match="too many connections for role"):
            for _ in range(21):
                login("nightscore_analyst")
        login("nightscore_writer").execute("SELECT 1")

    def test_it_does_not_see_what_others_are_running(self, login):
        writer, analyst = login("nightscore_writer"), login("nightscore_analyst")
        writer.execute("SELECT 'what the writer says'")
        analyst.execute("SELECT query FROM pg_stat_activity WHERE usename = 'nightscore_writer'")
        assert {text for (text,) in analyst} == {"<insufficient privilege>"}


def test_a_table_and_its_columns_are_quoted_when_rows_are_copied(store_and_database):
    from ml.database.connection import transaction
    from ml.database.copying import copy

    hostile = "x (y) FROM PROGRAM 'touch /tmp/mine'; --\"\\"
    with transaction() as session:
        quoted = sa.sql.quoted_name(hostile, quote=True)
        table = sa.Table(quoted, sa.MetaData(), sa.Column(quoted, sa.Text), prefixes=["TEMPORARY"])
        table.create(session.connection())
        copy(session, hostile, [hostile], [("kept",)])
        assert session.scalars(sa.select(table)).all() == ["kept"]
