"""What the reader of docs/production.md has already: Debian's PostgreSQL, and an S3 server.

The S3 server is SeaweedFS, which docker/compose.yaml runs as well. It keeps a list of keys with
their rights and speaks https itself.
"""

import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from pwd import getpwnam

import httpx
import psycopg2

from ml.stack.postgres import _privilege_prefix
from tests.support import debian
from tests.support.tls import Authority

HOST = "127.0.0.1"
WEED = debian.REPOSITORY / ".venv-s3" / "bin" / "weed"
# User → what it may do, as docs/iam/ says in AWS's words.
_RIGHTS = {
    "data": ["Admin", "Read", "Write", "List", "Tagging"],
    "tasks": [
        "Read:nightscore", "List:nightscore", "Write:nightscore/snapshots/*",
        "Write:nightscore/heatmaps/*", "Write:nightscore/reports/*",
    ],
    "pages": ["Read:nightscore/reports/*", "List:nightscore"],
    "mlflow": ["Read:mlflow", "Write:mlflow", "List:mlflow"],
}  # fmt: skip


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 240) -> None:
    """Ask until it is so; fails with the message `what` when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


class Process:
    """A process in a group of its own, with its output in a file.

    Args:
        command: the program and its arguments.
        log: where its output goes.
        environment: its variables.
    """

    def __init__(self, command: Iterable[str | Path], log: Path, environment: dict) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                cwd=log.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def require_alive(self) -> None:
        """Fail, with the end of its log, if it has ended."""
        assert self._process.poll() is None, self.log.read_text(errors="replace")[-4000:]

    def signal(self, number: int) -> None:
        """Send a signal to its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self) -> None:
        """Wait until it has ended; kills its group if that takes long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)  # SeaweedFS takes half a minute
        self.signal(signal.SIGKILL)
        self._process.wait()


def postgres(
    folder: Path, port: int, authority: Authority, settings: str, access: str, password: str
) -> Process:
    """Start Debian's PostgreSQL on 127.0.0.1.

    Args:
        folder: where its data and its log are put.
        port: where it listens.
        authority: has signed its certificate.
        settings: lines for postgresql.conf.
        access: all lines of pg_hba.conf.
        password: the administrator's.
    """
    package = _newest_package()
    initdb, server = (debian.program(name, package) for name in ("initdb", "postgres"))
    data, password_file = folder / "postgres", folder / "postgres-password"
    password_file.write_text(password)
    data.mkdir(mode=0o700)
    _run_initdb([initdb.path, "-D", data, "-U", "postgres", f"--pwfile={password_file}"], data)
    for name in ("server.pem", "server.key"):
        shutil.copy(authority.server, data / name)
        _give_to_postgres(data / name, 0o600)
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"\n{settings}\nlisten_addresses = '{HOST}'\nport = {port}\n")
        file.write("unix_socket_directories = ''\nmax_connections = 200\n")
    (data / "pg_hba.conf").write_text(access)
    command = [*_privilege_prefix(), server.path, "-D", data]
    process = Process(command, folder / "postgres.log", server.environment or dict(os.environ))

    def answers() -> bool:
        process.require_alive()
        try:
            psycopg2.connect(
                host=HOST, port=port, user="postgres", password=password, dbname="postgres",
                sslmode="verify-full", sslrootcert=str(authority.path),
            ).close()  # fmt: skip
        except psycopg2.OperationalError:
            return False
        return True

    wait_until(answers, "PostgreSQL has not started")
    return process


def _newest_package() -> str:
    """Debian's package of PostgreSQL: 15 on Debian 12, 17 on 13."""
    release = Path("/etc/debian_version").read_text().split(".")[0]
    return {"12": "postgresql-15"}.get(release, "postgresql-17")


def _run_initdb(command: list[str | Path], data: Path) -> None:
    _give_to_postgres(data, 0o700)
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]
    done = subprocess.run(
        [*_privilege_prefix(), *map(str, command), *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _give_to_postgres(path: Path, mode: int) -> None:
    path.chmod(mode)
    if os.getuid() == 0:
        user = getpwnam("nobody")
        os.chown(path, user.pw_uid, user.pw_gid)


def seaweedfs(
    folder: Path, ports: list[int], authority: Authority
) -> tuple[Process, dict[str, str]]:
    """Start SeaweedFS, whose S3 server speaks https on the first port.

    Returns:
        The process, and user → the lines of an environment file with its key.
    """
    users = {name: (secrets.token_hex(8), secrets.token_hex(16)) for name in _RIGHTS}
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": users[name][0], "secretKey": users[name][1]}],
            "actions": actions,
        }
        for name, actions in _RIGHTS.items()
    ]
    configuration = folder / "s3.json"
    configuration.write_text(json.dumps({"identities": identities}))
    data = folder / "objects"
    data.mkdir()
    s3, master, volume, filer = ports
    command = [
        WEED, "server", f"-dir={data}", f"-ip={HOST}", f"-master.port={master}",
        f"-volume.port={volume}", "-volume.max=0", "-master.volumeSizeLimitMB=64",
        "-filer", f"-filer.port={filer}", f"-filer.localSocket={folder}/filer.sock",
        "-s3", f"-s3.port={s3}", f"-s3.config={configuration}", f"-s3.localSocket={folder}/s3.sock",
        f"-s3.cert.file={authority.server}", f"-s3.key.file={authority.server}",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    process = Process(command, folder / "seaweedfs.log", {"PATH": os.environ["PATH"]})
    wait_until(
        lambda: process.require_alive() or is_up(f"https://{HOST}:{s3}/healthz", authority),
        "SeaweedFS has not started",
    )
    lines = "AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n"
    return process, {name: lines.format(*key) for name, key in users.items()}


def get(address: str, authority: Authority) -> httpx.Response | None:
    """The answer of an address; None when nobody answers there."""
    try:
        return httpx.get(address, verify=trust(authority), timeout=5)
    except httpx.HTTPError:
        return None


def is_up(address: str, authority: Authority) -> bool:
    """Whether an address answers with 200."""
    answer = get(address, authority)
    return answer is not None and answer.status_code == httpx.codes.OK


def trust(authority: Authority) -> ssl.SSLContext:
    """What checks certificates by one authority alone."""
    return ssl.create_default_context(cafile=str(authority.path))
