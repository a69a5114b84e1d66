"""supervisord, which runs the processes of the stack (http://supervisord.org).

This module writes its configuration, starts it, and talks to it over its socket. Processes that
outlive a supervisord are found by a variable in their environment.
"""

import hashlib
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from ml.errors import ServiceError
from ml.settings import environment_variables
from ml.stack.layout import Layout
from ml.stack.process import BIN, Process

# In the environment of every process of a stack: the stack's state folder.
STACK_VARIABLE = "NIGHTSCORE_STACK"
_SPAWNED = re.compile(r"spawned: '[\w-]+' with pid (\d+)")
_MAX_SOCKET_PATH_LENGTH = 100  # sun_path has 108 bytes

RUNNING, STARTING = "RUNNING", "STARTING"


class Supervisor:
    """The supervisord of one state folder.

    Args:
        layout: the stack's folders.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.socket = _socket_path(layout.home)

    def configure(self, processes: Sequence[Process]) -> bool:
        """Write the configuration; returns whether it has changed."""
        path = self.layout.conf / "supervisord.conf"
        content = self._configuration(processes)
        if path.exists() and path.read_text(encoding="utf-8") == content:
            return False
        self.layout.write(path, content)
        return True

    def start(self) -> None:
        """Start supervisord unless it runs; it does not start the processes.

        All processes inherit supervisord's environment. It therefore has none of the variables with
        which the user's shell names services and logins; each process gets its own.

        Raises:
            ServiceError: supervisord did not start.
        """
        if self.is_running():
            return
        self.kill_orphans()
        self.socket.unlink(missing_ok=True)
        excluded = environment_variables()
        result = subprocess.run(
            [BIN / "supervisord", "-c", self.layout.conf / "supervisord.conf"],
            env={name: value for name, value in os.environ.items() if name not in excluded}
            | {STACK_VARIABLE: str(self.layout.home)},
            cwd=self.layout.home,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise ServiceError(f"supervisord did not start: {result.stdout}{result.stderr}")
        _wait_until(self.is_running, 10, "supervisord did not open its socket.")

    def is_running(self) -> bool:
        """Return whether supervisord answers on its socket."""
        try:
            self._rpc().supervisor.getState()
        except (OSError, HTTPException, Fault):
            return False
        return True

    def launch(self, name: str) -> None:
        """Start a process unless it runs, without waiting until it is ready."""
        if self.state(name)["statename"] not in (RUNNING, STARTING):
            self._rpc().supervisor.startProcess(name, False)

    def stop(self, *names: str) -> list[str]:
        """Stop processes in parallel and wait until they have ended.

        Returns:
            The names of those that ran.

        Raises:
            ServiceError: a process has not ended in time.
        """
        states = self.states()
        running = [name for name in names if name in states and is_alive(states[name])]
        for name in running:
            self._rpc().supervisor.stopProcess(name, False)
        for name in running:
            # supervisord kills a process that does not end within its `stopwaitsecs`.
            _wait_until(partial(self._has_ended, name), 60, f"{name} does not end.")
        return running

    def _has_ended(self, name: str) -> bool:
        return not is_alive(self.state(name))

    def state(self, name: str) -> dict[str, Any]:
        """Return supervisord's record of a process: statename, pid, start, now, spawnerr ..."""
        record = self._rpc().supervisor.getProcessInfo(name)
        assert isinstance(record, dict)
        return record

    def states(self) -> dict[str, dict[str, Any]]:
        """Return `state` of every process, by name; empty when supervisord does not run."""
        try:
            records: Any = self._rpc().supervisor.getAllProcessInfo()
        except (OSError, HTTPException, Fault):
            return {}
        return {record["name"]: record for record in records}

    def shut_down(self) -> None:
        """End supervisord and every other process of the stack."""
        if self.is_running():
            pid = int(str(self._rpc().supervisor.getPID()))
            self._rpc().supervisor.shutdown()
            _wait_until(lambda: not psutil.pid_exists(pid), 60, "supervisord does not end.")
        self.kill_orphans()
        self.socket.unlink(missing_ok=True)

    def kill_orphans(self) -> int:
        """End the processes of this stack when no supervisord runs; returns how many there were."""
        orphans = self.processes()
        for process in orphans:
            _signal(process, kill=False)
        _, alive = psutil.wait_procs(orphans, timeout=10)
        for process in alive:
            _signal(process, kill=True)
        psutil.wait_procs(alive, timeout=5)
        return len(orphans)

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of this stack.

        They have the state folder in a variable of their environment. Airflow's workers write their
        title over their environment; they are recognised by their working folder or their process
        group.
        """
        processes, orphaned = [], self._orphaned_groups()
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if self._is_own(process, orphaned):
                    processes.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return processes

    def _is_own(self, process: psutil.Process, orphaned: set[int]) -> bool:
        home = str(self.layout.home)
        try:
            if process.environ().get(STACK_VARIABLE) == home:
                return True
            return process.name().startswith("airflow") and process.cwd() == home
        except psutil.AccessDenied:
            # Airflow makes its workers unreadable to all but root (PR_SET_DUMPABLE), but the number
            # of their process group can be read.
            is_users = process.uids().real == os.getuid()
            return is_users and os.getpgid(process.pid) in orphaned

    def _orphaned_groups(self) -> set[int]:
        """The process groups whose leader, a process that supervisord started, has ended.

        While a process of a group lives, the kernel gives no new process the group's number.
        """
        path = self.layout.log("supervisord")
        log = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return {pid for pid in map(int, _SPAWNED.findall(log)) if not psutil.pid_exists(pid)}

    def log_tail(self, name: str, lines: int = 12) -> str:
        """Return the last lines of a process's log."""
        path = self.layout.log(name)
        if not path.exists():
            return "(no log)"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _rpc(self) -> ServerProxy:
        from supervisor.xmlrpc import SupervisorTransport

        return ServerProxy(
            "http://127.0.0.1", transport=SupervisorTransport(None, None, f"unix://{self.socket}")
        )

    def _configuration(self, processes: Sequence[Process]) -> str:
        logs = self.layout.logs
        sections = [
            f"[unix_http_server]\nfile={self.socket}\nchmod=0700\n",
            f"[supervisord]\nlogfile={logs / 'supervisord.log'}\n"
            f"pidfile={self.layout.conf / 'supervisord.pid'}\nlogfile_maxbytes=5MB\nminfds=1024\n",
            "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory="
            "supervisor.rpcinterface:make_main_rpcinterface\n",
            *(self._program(process) for process in processes),
        ]
        return "\n".join(sections)

    def _program(self, process: Process) -> str:
        environment = ",".join(f'{key}="{value}"' for key, value in process.environment.items())
        options = {
            "command": shlex.join(process.command),
            "environment": environment,
            "directory": str(self.layout.home),
            "autostart": "false",
            "autorestart": "true",
            "startsecs": "1",
            "startretries": "3",
            "stopsignal": process.stop_signal,
            "stopwaitsecs": str(process.stop_wait_s),
            # The signal must not go to every backend of Postgres. The others end as a group.
            "stopasgroup": "false" if process.service == "postgres" else "true",
            "killasgroup": "true",
            "stdout_logfile": str(self.layout.log(process.name)),
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": "2",
            "redirect_stderr": "true",
        }
        body = "\n".join(f"{key}={_escape(value)}" for key, value in options.items() if value)
        return f"[program:{process.name}]\n{body}\n"


def is_alive(state: dict[str, Any]) -> bool:
    """Return whether a process runs, starts or stops, by its `Supervisor.state`."""
    return state["statename"] in (RUNNING, STARTING, "BACKOFF", "STOPPING")


def _escape(value: str) -> str:
    return value.replace("%", "%%")


def _socket_path(home: Path) -> Path:
    """In the state folder, or in a private temporary folder when that path is too long."""
    path = home / "conf" / "supervisor.sock"
    if len(str(path)) <= _MAX_SOCKET_PATH_LENGTH:
        return path
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"nightscore-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServiceError(f"{folder} belongs to another user.", "Set TMPDIR to a folder of yours.")
    return folder / "supervisor.sock"


def _signal(process: psutil.Process, *, kill: bool) -> None:
    """Ask a process to end, or kill it."""
    try:
        if kill:
            process.kill()
        else:
            # On SIGTERM, Postgres would wait for its clients. On SIGINT it ends their sessions.
            is_postgres = process.name() == "postgres"
            process.send_signal(signal.SIGINT if is_postgres else signal.SIGTERM)
    except psutil.NoSuchProcess:
        return


def _wait_until(condition: Callable[[], bool], timeout_s: float, message: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServiceError(message)
        time.sleep(0.05)
