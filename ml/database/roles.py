"""Roles and databases on a Postgres server: Nightscore's own, and those of Airflow and MLflow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources

import sqlalchemy as sa
from psycopg2 import errors, extensions, sql

from ml.database.connection import engine_for
from ml.errors import ConfigurationError, ServiceError

OWNER, WRITER, ANALYST = "nightscore_owner", "nightscore_writer", "nightscore_analyst"
# Whoever deletes what `retention` limits. An installation without it does all but that.
MAINTAINER = "nightscore_maintainer"
ROLES = (OWNER, WRITER, ANALYST, MAINTAINER, "airflow", "mlflow")
# Database → owner, and the privileges of other roles. Airflow, MLflow and MLflow's user store each
# have a database of their own, because Alembic uses a table of the same name for all of them.
DATABASES: dict[str, tuple[str, dict[str, str]]] = {
    "nightscore": (
        OWNER,
        # The writer stages rows in temporary tables. An analyst could fill the disk with them.
        {WRITER: "CONNECT, TEMPORARY", ANALYST: "CONNECT", MAINTAINER: "CONNECT"},
    ),
    "airflow": ("airflow", {}),
    "mlflow": ("mlflow", {}),
    "mlflow_auth": ("mlflow", {}),
}


def prepare_server(administrator: sa.URL, passwords: Mapping[str, str]) -> None:
    """Create missing roles and databases, and set passwords and who may connect; safe to repeat.

    The databases are those of the roles named, so that Airflow's and MLflow's may be on another
    server than Nightscore's.

    Args:
        administrator: the URL of a role that may create roles and databases.
        passwords: role → password.

    Raises:
        ConfigurationError: a role is unknown, or a role that a database needs is missing.
        ServiceError: Postgres cannot be reached, or refuses.
    """
    _check_roles(passwords)
    databases = {name: grants for name, grants in DATABASES.items() if grants[0] in passwords}
    with _cursor(administrator) as cursor:
        for role, password in passwords.items():
            _ensure_role(cursor, role, password)
        if MAINTAINER in passwords:
            _ensure_member(cursor, OWNER, MAINTAINER)
        for database, (owner, privileges) in databases.items():
            known = {role: of for role, of in privileges.items() if role in passwords}
            _ensure_database(cursor, database, owner, known)
        if "airflow" in passwords:
            # When a scheduler is killed, its workers may live on and keep its connections open.
            # Without this timeout, the run that it had locked is blocked for as long as they live.
            cursor.execute("ALTER ROLE airflow SET idle_in_transaction_session_timeout = '1min'")
        # By default every role may connect to these two.
        cursor.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
    if "nightscore" in databases:
        _limit_analyst(administrator.set(database="nightscore"))


def _check_roles(passwords: Mapping[str, str]) -> None:
    if unknown := sorted(passwords.keys() - set(ROLES)):
        raise ConfigurationError(
            f"There is no role {unknown[0]!r}.", f"The roles are {', '.join(ROLES)}."
        )
    for database, (owner, privileges) in DATABASES.items():
        needed = privileges.keys() - {MAINTAINER}
        if owner in passwords and (missing := sorted(needed - passwords.keys())):
            raise ConfigurationError(
                f"The database {database} needs the role {missing[0]}, too.",
                "Name a password for it.",
            )


def _ensure_member(cursor: extensions.cursor, member: str, role: str) -> None:
    """Let a role do what another may.

    The maintainer owns the tables whose partitions it detaches, and the owner migrates them, too.
    """
    cursor.execute(
        "SELECT FROM pg_auth_members WHERE roleid = %s::regrole AND member = %s::regrole",
        [role, member],
    )
    if cursor.fetchone() is None:
        cursor.execute(
            sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(member))
        )


def _limit_analyst(administrator: sa.URL) -> None:
    """Keep an analyst's session from blocking a night (`administrator.sql`)."""
    file = resources.files("ml.database") / "sql" / "administrator.sql"
    with _cursor(administrator) as cursor:
        try:
            cursor.execute(file.read_text(encoding="utf-8"))
        except errors.InsufficientPrivilege as error:
            raise ServiceError(
                f"An analyst's session cannot be limited: {str(error).splitlines()[0]}.",
                "The roles and databases are made. Functions of pg_catalog can be revoked by a "
                "superuser only; without one, let analysts work on a read replica.",
            ) from None


@contextmanager
def _cursor(administrator: sa.URL) -> Iterator[extensions.cursor]:
    """A cursor of the administrator, with autocommit."""
    engine = engine_for(administrator.render_as_string(hide_password=False))
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        cursor = connection.connection.cursor()
        yield cursor  # type: ignore[misc]  # psycopg2's own
    engine.dispose()


def _ensure_role(cursor: extensions.cursor, role: str, password: str) -> None:
    """Create a role if missing; its password is always set, in case it has been changed."""
    cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", [role])
    verb = sql.SQL("CREATE" if cursor.fetchone() is None else "ALTER")
    # Hashed here, since the server may log the statement.
    hashed = extensions.encrypt_password(password, role, cursor.connection, "scram-sha-256")
    cursor.execute(
        sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
            verb, sql.Identifier(role), sql.Literal(hashed)
        )
    )


def _ensure_database(
    cursor: extensions.cursor, database: str, owner: str, privileges: dict[str, str]
) -> None:
    """Create a database if missing, and set what the other roles may do."""
    name = sql.Identifier(database)
    cursor.execute("SELECT FROM pg_database WHERE datname = %s", [database])
    if cursor.fetchone() is None:
        # A server that was set up without a locale makes databases that hold ASCII only.
        creation = sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0")
        cursor.execute(creation.format(name, sql.Identifier(owner)))
    for role in ("PUBLIC", *privileges):
        grantee = sql.SQL(role) if role == "PUBLIC" else sql.Identifier(role)
        cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(name, grantee))
    for role, granted in privileges.items():
        cursor.execute(
            sql.SQL("GRANT {} ON DATABASE {} TO {}").format(
                sql.SQL(granted), name, sql.Identifier(role)
            )
        )
