"""The state folder: its folders and files, the servers' ports and their passwords."""

import json
import os
import secrets
import socket
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ml.errors import ConfigurationError
from ml.files import atomic_path

HOST = "127.0.0.1"
DEFAULT_PORTS = {"postgres": 5452, "s3": 9052, "mlflow": 5052, "airflow": 8052}
BUCKETS = ("nightscore", "mlflow")


@dataclass(frozen=True)
class Layout:
    """The folders and files of a stack.

    Attributes:
        home: the state folder.
    """

    home: Path

    def make(self) -> None:
        """Create the folders; only their owner can open them."""
        for folder in (self.home, self.conf, self.logs, self.s3, self.airflow):
            folder.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)

    @property
    def conf(self) -> Path:
        """The folder of the servers' configuration, passwords and ports."""
        return self.home / "conf"

    @property
    def logs(self) -> Path:
        """The folder of the processes' logs."""
        return self.home / "logs"

    @property
    def postgres(self) -> Path:
        """The data folder of Postgres."""
        return self.home / "postgres"

    @property
    def s3(self) -> Path:
        """The folder of the buckets."""
        return self.home / "s3"

    @property
    def airflow(self) -> Path:
        """Airflow's home, with the logs of tasks."""
        return self.home / "airflow"

    def log(self, process: str) -> Path:
        """Return the path of a process's log, which has its standard output and error."""
        return self.logs / f"{process}.log"

    def write(self, path: Path, content: str) -> Path:
        """Write a file whole or not at all; only its owner can read it. Returns its path."""
        with atomic_path(path) as partial:
            partial.touch(mode=0o600)
            partial.write_text(content, encoding="utf-8")
        return path

    @cached_property
    def passwords(self) -> dict[str, str]:
        """The passwords, which are generated once; a later release may add some."""
        path = self.conf / "passwords.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        passwords = {name: stored.get(name) or generate() for name, generate in _GENERATORS.items()}
        if passwords != stored:
            self.write(path, json.dumps(passwords, indent=1))
        return passwords


def _hex() -> str:
    return secrets.token_hex(16)


def _fernet_key() -> str:
    return urlsafe_b64encode(secrets.token_bytes(32)).decode()


# Password → the function that generates it.
_GENERATORS: dict[str, Callable[[], str]] = {
    "postgres": _hex,
    "owner": _hex,
    "writer": _hex,
    "analyst": _hex,
    "maintainer": _hex,
    "airflow_database": _hex,
    "mlflow_database": _hex,
    "s3_key": lambda: "NS" + secrets.token_hex(9).upper(),
    "s3_secret": lambda: secrets.token_hex(20),
    "mlflow": lambda: secrets.token_urlsafe(12),
    "mlflow_session": _hex,
    "airflow": lambda: secrets.token_urlsafe(12),
    "airflow_fernet": _fernet_key,
    "airflow_jwt": lambda: secrets.token_hex(32),
    "airflow_session": lambda: secrets.token_hex(32),
}


def choose_ports(
    layout: Layout, reservations: ExitStack, requested: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Choose a free port for each server: the last one where it is still free, else the next one.

    Call it while nothing of the stack runs.

    Args:
        layout: the stack's folders; the choice is stored there.
        reservations: until it is closed, no other stack that starts at the same time chooses the
            same ports.
        requested: server → port that the user asks for. They take precedence over the variables
            NIGHTSCORE_POSTGRES_PORT and the like.

    Returns:
        Server → port.

    Raises:
        ConfigurationError: a port that the user asks for is not free.
    """
    path = layout.conf / "ports.json"
    last = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    fixed = _ports_of_environment() | dict(requested or {})
    ports: dict[str, int] = {}
    for server, default in DEFAULT_PORTS.items():
        if server in fixed:
            if not _reserve(fixed[server], reservations):
                raise ConfigurationError(
                    f"Port {fixed[server]} for {server} is taken by another program.",
                    f"Free it, or choose another with NIGHTSCORE_{server.upper()}_PORT.",
                )
            ports[server] = fixed[server]
        else:
            ports[server] = _reserve_next(last.get(server, default), reservations)
    layout.write(path, json.dumps(ports))
    return ports


def known_ports(layout: Layout) -> dict[str, int]:
    """Return the ports chosen at the last start; before the first start, the defaults."""
    path = layout.conf / "ports.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else dict(DEFAULT_PORTS)


def _ports_of_environment() -> dict[str, int]:
    ports = {}
    for server in DEFAULT_PORTS:
        variable = f"NIGHTSCORE_{server.upper()}_PORT"
        if text := os.environ.get(variable):
            if not text.isdecimal() or not 0 < int(text) < 65536:
                raise ConfigurationError(f"{variable} is {text!r}, not a port from 1 to 65535.")
            ports[server] = int(text)
    return ports


def _reserve_next(first: int, reservations: ExitStack) -> int:
    for port in range(first, min(first + 1000, 65536)):
        if _reserve(port, reservations):
            return port
    raise ConfigurationError(f"No port from {first} on is free.")


def _reserve(port: int, reservations: ExitStack) -> bool:
    """Reserve a port against other stacks; returns False when it is not free.

    The reservation is a UDP socket with the same number. It does not disturb the servers, which use
    TCP. Processes of every user see it, and it ends with the process that made it.
    """
    with socket.socket() as probe:
        # A server can take a port whose last connections are still in TIME_WAIT.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    reservation = socket.socket(type=socket.SOCK_DGRAM)
    try:
        reservation.bind((HOST, port))
    except OSError:
        reservation.close()
        return False
    reservations.enter_context(reservation)
    return True
