"""Start and stop the local stack."""

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ml.config.loading import config_path
from ml.errors import ServiceError
from ml.settings import OWNER_ENV, STACK_ENV, settings
from ml.stack import airflow_server, mlflow_server, postgres, s3
from ml.stack.layout import HOST, Layout, choose_ports, known_ports
from ml.stack.neighbours import stranger
from ml.stack.process import Process
from ml.stack.supervisor import RUNNING, Supervisor, is_alive

SERVICES = ("postgres", "s3", "mlflow", "airflow")
ALREADY_UP = "the stack is up already"
GPU_SLOTS = 1
_READY_WITHIN_S = 180

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProcessStatus:
    """A process as `status` shows it; `log` is the end of its log when it does not run."""

    name: str
    state: str
    pid: int | None
    uptime_s: int | None
    address: str
    log: str = ""

    @property
    def is_running(self) -> bool:
        return self.state == RUNNING


class LocalStack:
    """The stack of one state folder."""

    def __init__(self, home: Path) -> None:
        self.layout = Layout(home.absolute())
        self.supervisor = Supervisor(self.layout)
        # Of ports: some servers may be started later than the others.
        self._reservations = ExitStack()

    def up(
        self,
        services: Sequence[str] = SERVICES,
        ports: Mapping[str, int] | None = None,
        say: Say = lambda line: None,
        on_storage: Callable[[], None] = lambda: None,
    ) -> None:
        """Start what does not run yet and wait until it is ready; safe to repeat.

        `on_storage` is called as soon as Postgres and S3 may be used, while the rest still starts.

        Raises:
            ConfigurationError: a port that the user named is taken.
            ServiceError: a process did not come up; the message ends with its log.
        """
        self.layout.make()
        with self._alone():
            chosen = self._ports(ports, say)
            processes = self._processes(chosen)
            self._write_environment(chosen)
            if self.supervisor.configure(processes) and self.supervisor.is_running():
                say("the configuration has changed: stopping what runs")
                self._stop()
            self.supervisor.start()
            self._start(processes, services, chosen, say, on_storage)
            if set(services) == set(SERVICES):
                self._reservations.close()

    def down(self, say: Say = lambda line: None) -> bool:
        """Stop everything; returns whether there was anything to stop."""
        if not self.layout.home.exists():
            return False
        with self._alone():
            self._reservations.close()
            return self._stop(say)

    def status(self) -> list[ProcessStatus]:
        """Every process that was started, in that order; empty when the stack is down."""
        states = self.supervisor.states()
        found = []
        for process in self._processes(known_ports(self.layout)) if states else ():
            state = states.get(process.name)
            if state is None or state["statename"] == "STOPPED":
                continue
            running = state["statename"] == RUNNING
            found.append(
                ProcessStatus(
                    process.name,
                    state["statename"],
                    state["pid"] or None,
                    state["now"] - state["start"] if running else None,
                    process.address,
                    "" if running else self.supervisor.tail(process.name),
                )
            )
        return found

    def addresses(self) -> list[str]:
        """Lines for a person: where the servers are and how to log in."""
        ports, passwords = known_ports(self.layout), self.layout.passwords
        analyst = f"postgresql://nightscore_analyst:{passwords['analyst']}"
        return [
            f"Airflow http://{HOST}:{ports['airflow']}   "
            f"user {airflow_server.USER}, password {passwords['airflow']}",
            f"MLflow  http://{HOST}:{ports['mlflow']}   "
            f"user {mlflow_server.USER}, password {passwords['mlflow']}",
            f"SQL     {analyst}@{HOST}:{ports['postgres']}/nightscore",
            f"S3      http://{HOST}:{ports['s3']}   key and secret in "
            f"{_shown(self.layout.home / STACK_ENV)}",
        ]

    def _start(
        self,
        processes: Sequence[Process],
        services: Sequence[str],
        ports: dict[str, int],
        say: Say,
        on_storage: Callable[[], None],
    ) -> None:
        wanted = [process for process in processes if process.service in services]
        storage = [process for process in wanted if process.service in ("postgres", "s3")]
        rest = [process for process in wanted if process not in storage]
        if all(self._is_up(process) for process in wanted):
            say(ALREADY_UP)
            on_storage()
            return
        if "postgres" in services:
            postgres.initialise(self.layout)
        s3.prepare(self.layout)
        self._launch(storage, say)
        if "postgres" in services:
            from ml.database.migrate import migrate

            postgres.prepare(self.layout, ports["postgres"])
            migrate()
        on_storage()
        if "mlflow" in services:
            mlflow_server.prepare(self.layout, ports)
        if "airflow" in services:
            airflow_server.prepare(self.layout)
        with ThreadPoolExecutor(1) as pool:
            # Both migrate a database of their own at the first start: side by side.
            migration = (
                pool.submit(airflow_server.migrate, self.layout, ports)
                if "airflow" in services
                else None
            )
            self._launch([process for process in rest if process.service == "mlflow"], say)
            if migration is not None:
                migration.result()
        self._launch([process for process in rest if process.service == "airflow"], say)
        if "airflow" in services:
            self._make_pool()

    def _launch(self, processes: Sequence[Process], say: Say) -> None:
        waiting = [process for process in processes if not self._is_up(process)]
        for process in waiting:
            self.supervisor.launch(process.name)
        deadline = time.monotonic() + _READY_WITHIN_S
        while waiting:
            for process in list(waiting):
                state = self.supervisor.state(process.name)["statename"]
                if state == RUNNING and process.is_ready():
                    # It may only be about to end, because another stack has its port and answers.
                    if self._stranger(process):
                        raise self._not_started(process, state)
                    waiting.remove(process)
                    say(f"{process.name} is ready {process.address}".rstrip())
                    continue
                if state in ("FATAL", "EXITED") or time.monotonic() > deadline:
                    raise self._not_started(process, state)
            time.sleep(0.1 if waiting else 0)

    def _not_started(self, process: Process, state: str) -> ServiceError:
        if who := self._stranger(process):
            return ServiceError(
                f"{process.name} did not start: {who} has taken its port, {process.address}.",
                "Run `nightscore down`, then the command again: other ports are chosen.",
            )
        return ServiceError(
            f"{process.name} did not start ({state}). The end of its log, "
            f"{self.layout.log(process.name)}:\n{self.supervisor.tail(process.name)}"
        )

    def _is_up(self, process: Process) -> bool:
        state = self.supervisor.states().get(process.name)
        is_running = state is not None and state["statename"] == RUNNING
        return is_running and process.is_ready() and not self._stranger(process)

    def _stranger(self, process: Process) -> str:
        """Who answers at a process's address in its place; "" when nobody does."""
        if not process.address:
            return ""
        port = known_ports(self.layout)[process.service]
        return stranger(self.layout, process.service, HOST, port)

    def _make_pool(self) -> None:
        from ml.stack.airflow_client import AirflowApi

        with AirflowApi(settings()) as api:
            api.ensure_pool("gpu", GPU_SLOTS, "Training and scoring: one slot a GPU (or machine)")

    def _stop(self, say: Say = lambda line: None) -> bool:
        was_running = self.supervisor.is_running()
        processes = self._processes(known_ports(self.layout))
        # Clients before the servers they write to.
        for service in reversed(SERVICES):
            names = [process.name for process in processes if process.service == service]
            for name in self.supervisor.stop(*names):
                say(f"{name} is stopped")
        left = bool(self.supervisor.marked())
        self.supervisor.shut_down()
        return was_running or left

    def _ports(self, wanted: Mapping[str, int] | None, say: Say) -> dict[str, int]:
        if any(map(is_alive, self.supervisor.states().values())):
            return known_ports(self.layout)
        # Nothing runs, or only a supervisor whose processes could not start.
        self.supervisor.shut_down()
        before = known_ports(self.layout)
        self._reservations.close()  # those of a start before
        ports = choose_ports(self.layout, self._reservations, wanted)
        for server, port in ports.items():
            if port != before[server] and server not in (wanted or {}):
                say(f"port {before[server]} is taken; {server} listens on {port}")
        return ports

    def _processes(self, ports: dict[str, int]) -> list[Process]:
        services = self._services(ports)
        return [
            postgres.process(self.layout, ports["postgres"]),
            s3.process(self.layout, ports["s3"]),
            mlflow_server.process(self.layout, ports, services),
            *airflow_server.processes(self.layout, ports, services),
        ]

    def _services(self, ports: dict[str, int]) -> dict[str, str]:
        """What a task needs to reach the stack: to write to Postgres and S3, and to use MLflow."""
        passwords = self.layout.passwords
        return {
            "NIGHTSCORE_HOME": str(self.layout.home),
            "NIGHTSCORE_CONFIG": str(config_path()),
            "NIGHTSCORE_DATABASE_URL": self._url("writer", ports),
            "AWS_ENDPOINT_URL": f"http://{HOST}:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": passwords["s3_key"],
            "AWS_SECRET_ACCESS_KEY": passwords["s3_secret"],
            "AWS_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['mlflow']}",
            "MLFLOW_TRACKING_USERNAME": mlflow_server.USER,
            "MLFLOW_TRACKING_PASSWORD": passwords["mlflow"],
        }

    def _logins(self, ports: dict[str, int]) -> dict[str, str]:
        """What a person's commands need beside that: `nightscore sql`, and `run` for Airflow."""
        return {
            "NIGHTSCORE_ANALYST_URL": self._url("analyst", ports),
            "NIGHTSCORE_AIRFLOW_URL": f"http://{HOST}:{ports['airflow']}",
            "NIGHTSCORE_AIRFLOW_USERNAME": airflow_server.USER,
            "NIGHTSCORE_AIRFLOW_PASSWORD": self.layout.passwords["airflow"],
        }

    def _url(self, role: str, ports: dict[str, int]) -> str:
        return postgres.url(self.layout, ports["postgres"], f"nightscore_{role}", "nightscore")

    def _write_environment(self, ports: dict[str, int]) -> None:
        """Write what commands read: `stack.env`, and apart from it what only a migration may."""
        # Which configuration is in use is the caller's to say, not the stack's.
        own = ("NIGHTSCORE_HOME", "NIGHTSCORE_CONFIG")
        services = {k: v for k, v in self._services(ports).items() if k not in own}
        owner = {"NIGHTSCORE_OWNER_URL": self._url("owner", ports)}
        for name, values in ((STACK_ENV, services | self._logins(ports)), (OWNER_ENV, owner)):
            lines = "".join(f"{key}='{value}'\n" for key, value in values.items())
            self.layout.write(self.layout.home / name, lines)
        settings.cache_clear()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        with (self.layout.home / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _shown(path: Path) -> str:
    """A path as a person would write it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
