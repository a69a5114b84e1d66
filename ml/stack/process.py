"""A server process of the stack: what to run, and how to see that it is ready."""

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
    """Return the folder with the files of an installed package, without importing it.

    Raises:
        ConfigurationError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"The package {package} is not installed.",
            "The local stack needs the extra `local`: pip install 'nightscore[local]'.",
        )
    return Path(spec.submodule_search_locations[0])


def http_get(port: int, path: str, timeout_s: float = 5) -> tuple[int, bytes] | None:
    """Send a GET request to a server on this machine.

    Servers are asked many times per second while they start, when other processes need the cores.
    Creating an httpx client would take tens of milliseconds each time.

    Returns:
        Status and body of the answer; None when there is no answer.
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
    """A process that the supervisor runs.

    Attributes:
        name: its name in the supervisor.
        service: postgres, s3, mlflow or airflow; a user starts the processes of a service together.
        command: the program and its arguments.
        is_ready: tells whether it does its work; called until it returns True.
        environment: the variables of its environment, beside those of the supervisor.
        address: where it listens; empty when it does not.
        stop_signal: the signal that asks it to end.
        stop_wait_s: how long it may take to end before it is killed.
    """

    name: str
    service: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    address: str = ""
    stop_signal: str = "TERM"
    stop_wait_s: int = 15
