"""A server process of the stack, as the supervisor is told about it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path

from ml.errors import ConfigurationError
from ml.stack.layout import HOST

BIN = Path(sys.executable).parent


def package_folder(package: str) -> Path:
    """Where a wheel's files lie; the package itself is not imported.

    Raises ConfigurationError when it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"The package {package} is not installed.",
            "The local stack needs the extra `local`: pip install 'nightscore[local]'.",
        )
    return Path(spec.submodule_search_locations[0])


def ask(port: int, path: str, timeout_s: float = 5) -> tuple[int, bytes] | None:
    """Status and body of a server's answer to a GET; None when it does not answer.

    It is asked many times a second while it starts, and whatever else starts needs the cores: to
    make an httpx client takes tens of milliseconds.
    """
    connection = HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


@dataclass(frozen=True)
class Process:
    """What to run, how to see that it is ready, and how to stop it.

    `service` groups processes that a user starts together: postgres, s3, mlflow or airflow.
    `stop_wait_s` is how long it may take after `stop_signal` before it is killed.
    """

    name: str
    service: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    address: str = ""
    stop_signal: str = "TERM"
    stop_wait_s: int = 15
