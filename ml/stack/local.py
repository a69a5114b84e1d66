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
from ml.program.device import usable_gpus
from ml.settings import MAINTAINER_ENV, OWNER_ENV, STACK_ENV, settings
from ml.stack import airflow_server, mlflow_server, postgres, s3
from ml.stack.layout import HOST, Layout, choose_ports, known_ports
from ml.stack.port_conflicts import foreign_server
from ml.stack.process import Process
from ml.stack.progress import OnMessage
from ml.stack.supervisor import RUNNING, Supervisor, is_alive

SERVICES = ("postgres", "s3", "mlflow", "airflow")
ALREADY_UP = "the stack is up already"
_READY_TIMEOUT_S = 180


@dataclass(frozen=True)
class ProcessStatus:
    """A process as `nightscore status` shows it.

    Attributes:
        name: its name in the supervisor.
        state: supervisord's name of its state, such as RUNNING or FATAL.
        pid: its process id; None when it does not run.
        uptime_s: how long it has run; None when it does not run.
        address: where it listens; empty when it does not.
        log: the end of its log; empty when it runs.
    """

    name: str
    state: str
    pid: int | None
    uptime_s: int | None
    address: str
    log: str = ""

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self.state == RUNNING


class LocalStack:
    """The stack of one state folder.

    Args:
        home: the state folder.
    """

    def __init__(self, home: Path) -> None:
        self.layout = Layout(home.absolute())
        self.supervisor = Supervisor(self.layout)
        # They last until all services have been started, which may take several calls of `up`.
        self._port_reservations = ExitStack()

    def up(
        self,
        services: Sequence[str] = SERVICES,
        ports: Mapping[str, int] | None = None,
        on_message: OnMessage = lambda line: None,
        on_storage_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the processes that do not run and wait until they are ready; safe to repeat.

        Args:
            services: the services to start.
            ports: service → port that the user asks for.
            on_message: called with each line for a person.
            on_storage_ready: called as soon as Postgres and S3 can be used, while the other
                services still start.

        Raises:
            ConfigurationError: a port that the user asks for is not free.
            ServiceError: a process did not start; the message ends with its log.
        """
        self.layout.make()
        with self._exclusive():
            chosen = self._choose_ports(ports, on_message)
            processes = self._processes(chosen)
            self._write_environment(chosen)
            if self.supervisor.configure(processes) and self.supervisor.is_running():
                on_message("the configuration has changed: stopping what runs")
                self._stop()
            self.supervisor.start()
            self._start(processes, services, chosen, on_message, on_storage_ready)
            if set(services) == set(SERVICES):
                self._port_reservations.close()

    def down(self, on_message: OnMessage = lambda line: None) -> bool:
        """Stop all processes; returns False when none was running."""
        if not self.layout.home.exists():
            return False
        with self._exclusive():
            self._port_reservations.close()
            return self._stop(on_message)

    def status(self) -> list[ProcessStatus]:
        """Return the processes that were started, in that order; empty when the stack is down."""
        states = self.supervisor.states()
        statuses = []
        for process in self._processes(known_ports(self.layout)) if states else ():
            state = states.get(process.name)
            if state is None or state["statename"] == "STOPPED":
                continue
            running = state["statename"] == RUNNING
            statuses.append(
                ProcessStatus(
                    process.name,
                    state["statename"],
                    state["pid"] or None,
                    state["now"] - state["start"] if running else None,
                    process.address,
                    "" if running else self.supervisor.log_tail(process.name),
                )
            )
        return statuses

    def addresses(self) -> list[str]:
        """Return lines that tell a person where the servers are and how to log in."""
        ports, passwords = known_ports(self.layout), self.layout.passwords
        analyst = f"postgresql://nightscore_analyst:{passwords['analyst']}"
        return [
            f"Airflow http://{HOST}:{ports['airflow']}   "
            f"user {airflow_server.USER}, password {passwords['airflow']}",
            f"MLflow  http://{HOST}:{ports['mlflow']}   "
            f"user {mlflow_server.USER}, password {passwords['mlflow']}",
            f"SQL     {analyst}@{HOST}:{ports['postgres']}/nightscore",
            f"S3      http://{HOST}:{ports['s3']}   key and secret in "
            f"{_relative(self.layout.home / STACK_ENV)}",
        ]

    def _start(
        self,
        processes: Sequence[Process],
        services: Sequence[str],
        ports: dict[str, int],
        on_message: OnMessage,
        on_storage_ready: Callable[[], None],
    ) -> None:
        def of_services(*names: str) -> list[Process]:
            return [p for p in processes if p.service in names and p.service in services]

        if all(self._is_up(process) for process in of_services(*SERVICES)):
            on_message(ALREADY_UP)
            on_storage_ready()
            return
        if "postgres" in services:
            postgres.initialise(self.layout)
        s3.prepare(self.layout)
        self._launch(of_services("postgres", "s3"), on_message)
        if "postgres" in services:
            from ml.database.migrate import migrate

            postgres.prepare(self.layout, ports["postgres"])
            migrate()
        on_storage_ready()
        if "mlflow" in services:
            mlflow_server.prepare(self.layout, ports)
        if "airflow" in services:
            airflow_server.prepare(self.layout)
        with ThreadPoolExecutor(1) as pool:
            # At the first start MLflow and Airflow each migrate their database: in parallel.
            migration = (
                pool.submit(airflow_server.migrate, self.layout, ports)
                if "airflow" in services
                else None
            )
            self._launch(of_services("mlflow"), on_message)
            if migration is not None:
                migration.result()
        self._launch(of_services("airflow"), on_message)
        if "airflow" in services:
            self._ensure_gpu_pool()

    def _launch(self, processes: Sequence[Process], on_message: OnMessage) -> None:
        """Start processes and wait until they are ready."""
        waiting = [process for process in processes if not self._is_up(process)]
        for process in waiting:
            self.supervisor.launch(process.name)
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while waiting:
            for process in list(waiting):
                state = self.supervisor.state(process.name)["statename"]
                if state == RUNNING and process.is_ready():
                    # Another stack may have its port and answer, while the process is about to end.
                    if self._port_conflict(process):
                        raise self._start_error(process, state)
                    waiting.remove(process)
                    on_message(f"{process.name} is ready {process.address}".rstrip())
                    continue
                if state in ("FATAL", "EXITED") or time.monotonic() > deadline:
                    raise self._start_error(process, state)
            time.sleep(0.1 if waiting else 0)

    def _start_error(self, process: Process, state: str) -> ServiceError:
        if server := self._port_conflict(process):
            return ServiceError(
                f"{process.name} did not start: {server} has taken its port, {process.address}.",
                "Run `nightscore down`, then the command again: other ports are chosen.",
            )
        return ServiceError(
            f"{process.name} did not start ({state}). The end of its log, "
            f"{self.layout.log(process.name)}:\n{self.supervisor.log_tail(process.name)}"
        )

    def _is_up(self, process: Process) -> bool:
        state = self.supervisor.states().get(process.name)
        is_running = state is not None and state["statename"] == RUNNING
        return is_running and process.is_ready() and not self._port_conflict(process)

    def _port_conflict(self, process: Process) -> str:
        """Which other server answers at a process's address; empty when none does."""
        if not process.address:
            return ""
        port = known_ports(self.layout)[process.service]
        return foreign_server(self.layout, process.service, HOST, port)

    def _ensure_gpu_pool(self) -> None:
        from ml.stack.airflow_client import AirflowApi

        with AirflowApi(settings()) as api:
            purpose = "Training and scoring: one slot per GPU (or per machine without one)"
            api.ensure_pool("gpu", max(usable_gpus(), 1), purpose)

    def _stop(self, on_message: OnMessage = lambda line: None) -> bool:
        """Stop all processes; returns False when none was running."""
        was_running = self.supervisor.is_running()
        processes = self._processes(known_ports(self.layout))
        # Clients before the servers that they write to.
        for service in reversed(SERVICES):
            names = [process.name for process in processes if process.service == service]
            for name in self.supervisor.stop(*names):
                on_message(f"{name} is stopped")
        has_orphans = bool(self.supervisor.processes())
        self.supervisor.shut_down()
        return was_running or has_orphans

    def _choose_ports(
        self, requested: Mapping[str, int] | None, on_message: OnMessage
    ) -> dict[str, int]:
        if any(map(is_alive, self.supervisor.states().values())):
            return known_ports(self.layout)
        # No process runs. A supervisor may run whose processes could not start.
        self.supervisor.shut_down()
        last = known_ports(self.layout)
        self._port_reservations.close()  # those of an earlier start
        ports = choose_ports(self.layout, self._port_reservations, requested)
        for server, port in ports.items():
            if port != last[server] and server not in (requested or {}):
                on_message(f"port {last[server]} is taken; {server} listens on {port}")
        return ports

    def _processes(self, ports: dict[str, int]) -> list[Process]:
        services = self._service_variables(ports)
        return [
            postgres.process(self.layout, ports["postgres"]),
            s3.process(self.layout, ports["s3"]),
            mlflow_server.process(self.layout, ports, services),
            *airflow_server.processes(
                self.layout, ports, services, self._database_url("analyst", ports)
            ),
        ]

    def _service_variables(self, ports: dict[str, int]) -> dict[str, str]:
        """The variables with which a task writes to Postgres and S3 and uses MLflow."""
        passwords = self.layout.passwords
        return {
            "NIGHTSCORE_HOME": str(self.layout.home),
            "NIGHTSCORE_CONFIG": str(config_path()),
            "NIGHTSCORE_DATABASE_URL": self._database_url("writer", ports),
            "AWS_ENDPOINT_URL": f"http://{HOST}:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": passwords["s3_key"],
            "AWS_SECRET_ACCESS_KEY": passwords["s3_secret"],
            "AWS_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['mlflow']}",
            "MLFLOW_TRACKING_USERNAME": mlflow_server.USER,
            "MLFLOW_TRACKING_PASSWORD": passwords["mlflow"],
        }

    def _user_variables(self, ports: dict[str, int]) -> dict[str, str]:
        """What a person's commands need besides: `nightscore sql`, and `run` for Airflow."""
        return {
            "NIGHTSCORE_ANALYST_URL": self._database_url("analyst", ports),
            "NIGHTSCORE_AIRFLOW_URL": f"http://{HOST}:{ports['airflow']}",
            "NIGHTSCORE_AIRFLOW_USERNAME": airflow_server.USER,
            "NIGHTSCORE_AIRFLOW_PASSWORD": self.layout.passwords["airflow"],
        }

    def _database_url(self, role: str, ports: dict[str, int]) -> str:
        return postgres.url(self.layout, ports["postgres"], f"nightscore_{role}", "nightscore")

    def _write_environment(self, ports: dict[str, int]) -> None:
        """Write `stack.env`, which commands read, and apart from it the two powerful logins."""
        # The state folder and the configuration are chosen by the user, not by these files.
        chosen_by_user = ("NIGHTSCORE_HOME", "NIGHTSCORE_CONFIG")
        variables = self._service_variables(ports) | self._user_variables(ports)
        services = {name: variables[name] for name in variables if name not in chosen_by_user}
        owner = {"NIGHTSCORE_OWNER_URL": self._database_url("owner", ports)}
        maintainer = {"NIGHTSCORE_MAINTAINER_URL": self._database_url("maintainer", ports)}
        files = {STACK_ENV: services, OWNER_ENV: owner, MAINTAINER_ENV: maintainer}
        for file, values in files.items():
            lines = "".join(f"{name}='{value}'\n" for name, value in values.items())
            self.layout.write(self.layout.home / file, lines)
        settings.cache_clear()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let one `up` or `down` run at a time."""
        with (self.layout.home / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _relative(path: Path) -> str:
    """A path relative to the working folder, if it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
