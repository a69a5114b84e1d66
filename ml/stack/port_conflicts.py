"""Which server answers on a port of the stack: its own, another stack's, or another program."""

import socket

import psutil

from ml.stack.layout import HOST, Layout, known_ports
from ml.stack.supervisor import RUNNING, STACK_VARIABLE, Supervisor

_LOCAL_HOSTS = {HOST, "localhost", "::1"}
# The process of a service that listens on its port, where it is not named like the service.
_LISTENERS = {"airflow": "airflow-api-server"}


def foreign_server(layout: Layout, service: str, host: str | None, port: int | None) -> str:
    """Describe the server that answers where this stack's own server should.

    Another stack has its own passwords. If it refuses ours, ours are still right.

    Args:
        layout: the stack's folders.
        service: postgres, s3, mlflow or airflow.
        host: the host of the service's address.
        port: the port of the service's address.

    Returns:
        A description such as "the stack in /home/me/.nightscore"; empty when no other server
        answers, or the address is not this stack's.
    """
    if not layout.conf.exists() or host not in _LOCAL_HOSTS or port is None:
        return ""
    if port != known_ports(layout)[service]:
        return ""
    listener = _listener(port)
    if listener is not None:
        home = _state_folder_of(listener)
        if home == str(layout.home):
            return ""
        if home:
            return f"the stack in {home}"
        return f"another program ({listener.name()}, process {listener.pid})"
    if not _accepts_connections(port):
        return ""
    # A process of another user cannot be inspected.
    process = _LISTENERS.get(service, service)
    state = Supervisor(layout).states().get(process, {}).get("statename")
    return "" if state == RUNNING else "another user's program"


def _listener(port: int) -> psutil.Process | None:
    """The process that listens on a port of this machine; None when it cannot be found out."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        connections = []
    for connection in connections:
        is_listening = connection.status == psutil.CONN_LISTEN
        if not is_listening or getattr(connection.laddr, "port", None) != port:
            continue
        if connection.pid:
            try:
                return psutil.Process(connection.pid)
            except psutil.Error:
                return None
    return None


def _accepts_connections(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=2).close()
    except OSError:
        return False
    return True


def _state_folder_of(process: psutil.Process) -> str:
    """The state folder of the stack that a process belongs to; empty when it belongs to none."""
    for ancestor in (process, *process.parents()):
        try:
            if home := ancestor.environ().get(STACK_VARIABLE):
                return home
        except psutil.Error:
            continue
    return ""
