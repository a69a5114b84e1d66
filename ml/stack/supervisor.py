"""supervisord, which runs the processes of the stack (http://supervisord.org).

This writes its configuration, starts it, and talks to it over its socket. What a dead supervisord
has left running is found by a variable in the processes' environment.
"""

import hashlib
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from ml.errors import ServiceError
from ml.settings import environment_variables
from ml.stack.layout import Layout
from ml.stack.process import BIN, Process

MARKER = "NIGHTSCORE_STACK"
_SPAWNED = re.compile(r"spawned: '[\w-]+' with pid (\d+)")
_LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes

RUNNING, STARTING = "RUNNING", "STARTING"


class Supervisor:
    """The supervisord of one state folder."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.socket = _socket_path(layout.home)

    def configure(self, processes: Sequence[Process]) -> bool:
        """Write the configuration; returns whether it differs from the one before."""
        path = self.layout.conf / "supervisord.conf"
        content = self._configuration(processes)
        if path.exists() and path.read_text(encoding="utf-8") == content:
            return False
        self.layout.write(path, content)
        return True

    def start(self) -> None:
        """Start supervisord unless it runs; it starts no process by itself.

        All processes inherit its environment: what the caller's shell says of services and logins
        stays out of it, and each process is given its own.
        """
        if self.is_running():
            return
        self.kill_leftovers()
        self.socket.unlink(missing_ok=True)
        ours = environment_variables()
        done = subprocess.run(
            [BIN / "supervisord", "-c", self.layout.conf / "supervisord.conf"],
            env={name: value for name, value in os.environ.items() if name not in ours}
            | {MARKER: str(self.layout.home)},
            cwd=self.layout.home,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise ServiceError(f"supervisord did not start: {done.stdout}{done.stderr}")
        _wait(self.is_running, 10, "supervisord did not open its socket.")

    def is_running(self) -> bool:
        """Whether supervisord answers on its socket."""
        try:
            self._rpc().supervisor.getState()
        except (OSError, HTTPException, Fault):
            return False
        return True

    def launch(self, name: str) -> None:
        """Start a process unless it runs; does not wait for it to be ready."""
        if self.state(name)["statename"] not in (RUNNING, STARTING):
            self._rpc().supervisor.startProcess(name, False)

    def stop(self, *names: str) -> list[str]:
        """Stop processes, side by side, and wait for their end; returns those that ran."""
        states = self.states()
        alive = [name for name in names if name in states and is_alive(states[name])]
        for name in alive:
            self._rpc().supervisor.stopProcess(name, False)
        for name in alive:
            # supervisord kills what does not end in its `stopwaitsecs`.
            _wait(lambda name=name: not is_alive(self.state(name)), 60, f"{name} does not end.")
        return alive

    def state(self, name: str) -> dict[str, Any]:
        """What supervisord says of a process: statename, pid, start, now, spawnerr ..."""
        found = self._rpc().supervisor.getProcessInfo(name)
        assert isinstance(found, dict)
        return found

    def states(self) -> dict[str, dict[str, Any]]:
        """`state` of every process, by name; empty when supervisord does not run."""
        try:
            found: Any = self._rpc().supervisor.getAllProcessInfo()
        except (OSError, HTTPException, Fault):
            return {}
        return {process["name"]: process for process in found}

    def shut_down(self) -> None:
        """End supervisord and everything that carries the stack's mark."""
        if self.is_running():
            pid = self._rpc().supervisor.getPID()
            self._rpc().supervisor.shutdown()
            _wait(lambda: not psutil.pid_exists(int(str(pid))), 60, "supervisord does not end.")
        self.kill_leftovers()
        self.socket.unlink(missing_ok=True)

    def kill_leftovers(self) -> int:
        """End processes of this stack that no supervisord looks after; returns how many."""
        left = self.marked()
        for process in left:
            _signal(process, kill=False)
        _, alive = psutil.wait_procs(left, timeout=10)
        for process in alive:
            _signal(process, kill=True)
        psutil.wait_procs(alive, timeout=5)
        return len(left)

    def marked(self) -> list[psutil.Process]:
        """The living processes that carry this stack's mark in their environment; and Airflow's
        workers, which write their title over it, but work in the state folder.
        """
        found, orphaned = [], self._orphaned_groups()
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if self._is_marked(process, orphaned):
                    found.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return found

    def _is_marked(self, process: psutil.Process, orphaned: set[int]) -> bool:
        home = str(self.layout.home)
        try:
            if process.environ().get(MARKER) == home:
                return True
            return process.name().startswith("airflow") and process.cwd() == home
        except psutil.AccessDenied:
            # Airflow closes its workers to all but root (PR_SET_DUMPABLE); their group is seen.
            own = process.uids().real == os.getuid()
            return own and os.getpgid(process.pid) in orphaned

    def _orphaned_groups(self) -> set[int]:
        """The process groups whose first process supervisord has started, and which has ended.

        While anything of a group lives, no new process is given its number.
        """
        path = self.layout.log("supervisord")
        log = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return {pid for pid in map(int, _SPAWNED.findall(log)) if not psutil.pid_exists(pid)}

    def tail(self, name: str, lines: int = 12) -> str:
        """The end of a process's log."""
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
        parts = [
            f"[unix_http_server]\nfile={self.socket}\nchmod=0700\n",
            f"[supervisord]\nlogfile={logs / 'supervisord.log'}\n"
            f"pidfile={self.layout.conf / 'supervisord.pid'}\nlogfile_maxbytes=5MB\nminfds=1024\n",
            "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory="
            "supervisor.rpcinterface:make_main_rpcinterface\n",
            *(self._program(process) for process in processes),
        ]
        return "\n".join(parts)

    def _program(self, process: Process) -> str:
        environment = ",".join(f'{key}="{value}"' for key, value in process.environment.items())
        lines = {
            "command": shlex.join(process.command),
            "environment": environment,
            "directory": str(self.layout.home),
            "autostart": "false",
            "autorestart": "true",
            "startsecs": "1",
            "startretries": "3",
            "stopsignal": process.stop_signal,
            "stopwaitsecs": str(process.stop_wait_s),
            # Postgres must not hear the signal in each backend; the others end as a group.
            "stopasgroup": "false" if process.service == "postgres" else "true",
            "killasgroup": "true",
            "stdout_logfile": str(self.layout.log(process.name)),
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": "2",
            "redirect_stderr": "true",
        }
        body = "\n".join(f"{key}={_escaped(value)}" for key, value in lines.items() if value)
        return f"[program:{process.name}]\n{body}\n"


def is_alive(state: dict[str, Any]) -> bool:
    """Whether a process runs, or is about to, by its `Supervisor.state`."""
    return state["statename"] in (RUNNING, STARTING, "BACKOFF", "STOPPING")


def _escaped(value: str) -> str:
    return value.replace("%", "%%")


def _socket_path(home: Path) -> Path:
    """In the state folder, or in a private folder of its own when that path is too long."""
    path = home / "conf" / "supervisor.sock"
    if len(str(path)) <= _LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"nightscore-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServiceError(f"{folder} belongs to another user.", "Set TMPDIR to a folder of yours.")
    return folder / "supervisor.sock"


def _signal(process: psutil.Process, *, kill: bool) -> None:
    """Ask a process to end, or make it. Postgres ends sessions on SIGINT; on SIGTERM it would wait
    for its clients.
    """
    try:
        if kill:
            process.kill()
        else:
            process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    except psutil.NoSuchProcess:
        return


def _wait(condition: Any, timeout_s: float, message: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServiceError(message)
        time.sleep(0.05)
