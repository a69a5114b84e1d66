"""Who answers on a port of the stack: its own server, another stack's, or another program."""

import socket

import psutil

from ml.stack.layout import HOST, Layout, known_ports
from ml.stack.supervisor import MARKER, RUNNING, Supervisor

# Whatever of these names the machine itself.
_LOCAL = {HOST, "localhost", "::1"}
_FIRST_OF = {"airflow": "airflow-api-server"}


def stranger(layout: Layout, service: str, host: str | None, port: int | None) -> str:
    """Who else answers where this stack's own server should, in words; "" when nobody does.

    Another stack has its own passwords, so what it says of ours is no reason to change them.
    """
    if not layout.conf.exists() or host not in _LOCAL or port is None:
        return ""
    if port != known_ports(layout)[service]:
        return ""
    listener = _listener(port)
    if listener is not None:
        home = _home(listener)
        if home == str(layout.home):
            return ""
        if home:
            return f"the stack in {home}"
        return f"another program ({listener.name()}, process {listener.pid})"
    if not _answers(port):
        return ""
    # A process of another user shows nothing of itself.
    name = _FIRST_OF.get(service, service)
    state = Supervisor(layout).states().get(name, {}).get("statename")
    return "" if state == RUNNING else "another user's program"


def _listener(port: int) -> psutil.Process | None:
    """The process that listens on a port of this machine; None when nobody may know."""
    try:
        found = psutil.net_connections("tcp")
    except psutil.Error:
        found = []
    for connection in found:
        if (
            connection.status != psutil.CONN_LISTEN
            or getattr(connection.laddr, "port", None) != port
        ):
            continue
        if connection.pid:
            try:
                return psutil.Process(connection.pid)
            except psutil.Error:
                return None
    return None


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=2).close()
    except OSError:
        return False
    return True


def _home(process: psutil.Process) -> str:
    """The state folder of the stack that a process belongs to; "" when it belongs to none."""
    for one in (process, *process.parents()):
        try:
            if home := one.environ().get(MARKER):
                return home
        except psutil.Error:
            continue
    return ""
