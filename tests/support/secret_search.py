"""A search for the secrets of a stack in everything that the stack has written."""

import base64
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from ml.database.roles import DATABASES
from ml.stack import airflow_server, mlflow_server, postgres
from ml.stack.layout import HOST, Layout, known_ports

# Where secrets belong; only the owner of the state folder can read these files.
KEPT = ("conf/", "stack.env")
USERS = {"mlflow": mlflow_server.USER, "airflow": airflow_server.USER}
# What gives access without a password of ours: a signed address, a token, a header.
PASSES = {
    "signature of a URL": rb"X-Amz-Signature=[0-9a-f]{8}",
    "signature of a request": rb"AWS4-HMAC-SHA256 Credential",
    "token": rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",
    "header": rb"Authorization['\"]?: ?['\"]?(Basic|Bearer) ",
    "login in a URL": rb"://[\w.-]+:[^\s/:@*]{8,}@",
}


def forms(layout: Layout) -> dict[str, set[bytes]]:
    """Secret → the forms in which it could be written: plain, in a URL, in a header."""
    secrets = {}
    for name, secret in layout.passwords.items():
        if name == "s3_key":
            continue  # names the key, as a user's name does
        plain = secret.encode()
        login = f"{USERS.get(name, name)}:{secret}".encode()
        secrets[name] = {plain, quote(secret, safe="").encode(), base64.b64encode(plain),
                       base64.b64encode(login)}  # fmt: skip
    return secrets


def hits(layout: Layout, more: dict[str, bytes]) -> list[str]:
    """Where a secret or a pass is written: in files of the state folder, in databases, in `more`."""
    secrets = forms(layout)
    findings = []
    for place, content in (*_files(layout), *_databases(layout), *more.items()):
        findings += [
            f"{name} in {place}"
            for name, written in secrets.items()
            if any(form in content for form in written)
        ]
        if not place.startswith(("postgres/", "s3/")):
            for name, pattern in PASSES.items():
                if match := re.search(pattern, content):
                    findings.append(f"{name} in {place}: {match[0][:60]!r}")
    return findings


def _files(layout: Layout) -> Iterator[tuple[str, bytes]]:
    for folder, _, names in os.walk(layout.home):
        for path in (Path(folder) / name for name in names):
            place = str(path.relative_to(layout.home))
            if path.is_file() and not place.startswith(KEPT):
                yield place, path.read_bytes()


def _databases(layout: Layout) -> Iterator[tuple[str, bytes]]:
    """A dump of each database: long values are compressed in the data files."""
    program = postgres.executable("pg_dump")
    for database in DATABASES:
        done = subprocess.run(
            [program, "-h", HOST, "-p", str(known_ports(layout)["postgres"]), "-U", "postgres",
             database],
            env={"PGPASSWORD": layout.passwords["postgres"], "LC_ALL": "C"},
            capture_output=True,
            check=True,
        )  # fmt: skip
        yield f"the database {database}", done.stdout
