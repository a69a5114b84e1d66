"""What lies where in the state folder, which ports the servers have, and their passwords."""

import json
import os
import secrets
import socket
from base64 import urlsafe_b64encode
from collections.abc import Mapping
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
    """The folders and files of a stack."""

    home: Path

    def make(self) -> None:
        """Make the folders; nobody but their owner may look into them."""
        for folder in (self.home, self.conf, self.logs, self.s3, self.airflow):
            folder.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)

    @property
    def conf(self) -> Path:
        return self.home / "conf"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def postgres(self) -> Path:
        return self.home / "postgres"

    @property
    def s3(self) -> Path:
        return self.home / "s3"

    @property
    def airflow(self) -> Path:
        return self.home / "airflow"

    def log(self, process: str) -> Path:
        """The log of a process, standard output and error together."""
        return self.logs / f"{process}.log"

    def write(self, path: Path, content: str) -> Path:
        """Write a file that only its owner can read, whole or not at all."""
        with atomic_path(path) as partial:
            partial.touch(mode=0o600)
            partial.write_text(content, encoding="utf-8")
        return path

    @cached_property
    def passwords(self) -> dict[str, str]:
        """Generated once and kept; a new name added by a later release gets its own."""
        path = self.conf / "passwords.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        made = {name: known.get(name) or make() for name, make in _PASSWORDS.items()}
        if made != known:
            self.write(path, json.dumps(made, indent=1))
        return made


def _hex() -> str:
    return secrets.token_hex(16)


def _fernet_key() -> str:
    return urlsafe_b64encode(secrets.token_bytes(32)).decode()


_PASSWORDS = {
    "postgres": _hex,
    "owner": _hex,
    "writer": _hex,
    "analyst": _hex,
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
    layout: Layout, reservations: ExitStack, wanted: Mapping[str, int] | None = None
) -> dict[str, int]:
    """A free port for each server, the same as last time where that is still free.

    A port named by the user (`wanted`, or NIGHTSCORE_POSTGRES_PORT and the like) is taken as it
    is; otherwise the next free one from the default on. Call it while nothing of the stack runs.
    Until `reservations` is closed, no other stack that starts at the same time chooses these ports.

    Raises:
        ConfigurationError: a port that the user named is taken by another program.
    """
    path = layout.conf / "ports.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    named = _named_ports() | dict(wanted or {})
    ports: dict[str, int] = {}
    for server, default in DEFAULT_PORTS.items():
        if server in named:
            if not _reserve(named[server], reservations):
                raise ConfigurationError(
                    f"Port {named[server]} for {server} is taken by another program.",
                    f"Free it, or choose another with NIGHTSCORE_{server.upper()}_PORT.",
                )
            ports[server] = named[server]
        else:
            ports[server] = _reserve_next(known.get(server, default), reservations)
    layout.write(path, json.dumps(ports))
    return ports


def known_ports(layout: Layout) -> dict[str, int]:
    """The ports chosen at the last start; the defaults before the first."""
    path = layout.conf / "ports.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else dict(DEFAULT_PORTS)


def _named_ports() -> dict[str, int]:
    named = {}
    for server in DEFAULT_PORTS:
        variable = f"NIGHTSCORE_{server.upper()}_PORT"
        if text := os.environ.get(variable):
            if not text.isdecimal() or not 0 < int(text) < 65536:
                raise ConfigurationError(f"{variable} is {text!r}, not a port from 1 to 65535.")
            named[server] = int(text)
    return named


def _reserve_next(first: int, reservations: ExitStack) -> int:
    for port in range(first, min(first + 1000, 65536)):
        if _reserve(port, reservations):
            return port
    raise ConfigurationError(f"No port from {first} on is free.")


def _reserve(port: int, reservations: ExitStack) -> bool:
    """Whether a server can have the port; then no other stack gets it until the servers listen.

    The reservation is a UDP socket of the same number: the servers use TCP, so it is not in their
    way, it is seen by every user's processes, and it ends with the process that made it.
    """
    with socket.socket() as probe:
        # A port whose last connections are still winding down is free for a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    mark = socket.socket(type=socket.SOCK_DGRAM)
    try:
        mark.bind((HOST, port))
    except OSError:
        mark.close()
        return False
    reservations.enter_context(mark)
    return True
