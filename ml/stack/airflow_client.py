"""Airflow's REST API, as far as the command line needs it: start a DAG and follow its run.

Nothing of Airflow is imported; this talks to its server.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx

from ml.errors import ServiceError
from ml.settings import Settings, settings
from ml.timeouts import client_limits, retrying

_LOGIN = "/auth/token"
POLL_S = 1.5
LOG_POLL_S = 6.0
_DONE = ("success", "failed")


@dataclass(frozen=True, slots=True)
class DagRun:
    """A run of a DAG, by its ids."""

    dag_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task of a run, with its index where it is mapped: its state, the seconds that it has taken
    so far, and why it failed, if it did.
    """

    task: str
    state: str
    seconds: float
    reason: str = ""


def run_page(run: DagRun) -> str:
    """The address of a run in Airflow's user interface."""
    return f"{settings().airflow_url.rstrip('/')}/dags/{run.dag_id}/runs/{run.run_id}"


def report_page(run_id: UUID) -> str:
    """The address of a scoring run's report in Airflow (`plugins/nightscore_pages.py`)."""
    return f"{settings().airflow_url.rstrip('/')}/nightscore/reports/{run_id}"


class AirflowApi:
    """A client that is logged in; use as a context manager. Threads may share it."""

    def __init__(self, current: Settings | None = None) -> None:
        self.settings = current or settings()
        if not self.settings.airflow_url:
            raise ServiceError("NIGHTSCORE_AIRFLOW_URL is not set.", "Run `nightscore up`.")
        limits = client_limits()
        self._client = httpx.Client(
            base_url=self.settings.airflow_url.rstrip("/"),
            timeout=httpx.Timeout(limits.read_timeout_s, connect=limits.connect_timeout_s),
        )

    def __enter__(self) -> "AirflowApi":
        answer = self._call(
            "POST",
            _LOGIN,
            json={
                "username": self.settings.airflow_username,
                "password": self.settings.airflow_password.get_secret_value(),
            },
        )
        self._client.headers["Authorization"] = f"Bearer {answer['access_token']}"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def unpause(self, dag_id: str, timeout_s: float = 120) -> None:
        """Let a DAG run; waits for Airflow to have read its file.

        Raises ServiceError when it has not appeared in time, with the import errors there are.
        """
        deadline = time.monotonic() + timeout_s
        while not self._is_known(dag_id):
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"Airflow does not know the DAG {dag_id}. {self.import_errors()}",
                    "See the dag-processor's log: `nightscore status`.",
                )
            time.sleep(POLL_S)
        self._call("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Make a pool unless there is one of that name, whose slots are the administrator's."""
        if self._client.get(f"/api/v2/pools/{name}").status_code != httpx.codes.OK:
            pool = {"name": name, "slots": slots, "description": description}
            self._call("POST", "/api/v2/pools", json={**pool, "include_deferred": False})

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> DagRun:
        """Start a run of a DAG now."""
        # Airflow's own ids are too long for an address to fit in a line.
        run_id = f"run-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:4]}"
        answer = self._call(
            "POST",
            f"/api/v2/dags/{dag_id}/dagRuns",
            json={"logical_date": None, "conf": conf or {}, "dag_run_id": run_id},
        )
        return DagRun(dag_id, answer["dag_run_id"])

    def wait(
        self,
        runs: list[DagRun],
        on_task: Callable[[DagRun, TaskState], None] = lambda run, task: None,
        on_log: Callable[[DagRun, str, str], None] = lambda run, task, line: None,
        timeout_s: float = 3600,
        *,
        verbose: bool = False,
    ) -> dict[DagRun, str]:
        """Follow runs to their end; returns the final state of each, `success` or `failed`.

        Args:
            on_task: is called with each change of a task's state.
            on_log: is called now and then with the last line that `ml` has logged in a running
                task: run, task, line.
            verbose: calls `on_log` with every line of every task, whoever logged it.
        """
        deadline = time.monotonic() + timeout_s
        followed = {run: _Followed(self, run, on_task, on_log, verbose) for run in runs}
        states: dict[DagRun, str] = {}
        while len(states) < len(runs):
            for run in (run for run in runs if run not in states):
                state = self._call("GET", _path(run))["state"]
                followed[run].tell()
                if state in _DONE:
                    states[run] = state
            if time.monotonic() > deadline:
                raise ServiceError(f"{[run.dag_id for run in runs]} did not end in {timeout_s} s.")
            time.sleep(POLL_S if len(states) < len(runs) else 0)
        return states

    def failure(self, run: DagRun, lines: int = 15) -> str:
        """The first failed task of a run and the end of its log."""
        for found in self.task_instances(run):
            if found["state"] == "failed":
                return f"task {found['task_id']}:\n{self.log_lines(run, found, lines)}"
        return "no task has failed; see the scheduler's log"

    def import_errors(self) -> str:
        """What Airflow could not read of the DAG files; empty when all is well."""
        found = self._call("GET", "/api/v2/importErrors")["import_errors"]
        return " ".join(f"{error['filename']}: {error['stack_trace']}" for error in found)

    def task_instances(self, run: DagRun) -> list[dict[str, Any]]:
        """The tasks of a run as Airflow describes them, in the order in which they began."""
        answer = self._call("GET", f"{_path(run)}/taskInstances", params={"limit": 1000})
        instances: list[dict[str, Any]] = answer["task_instances"]
        return sorted(instances, key=lambda found: found["start_date"] or "9")

    def log_lines(self, run: DagRun, instance: dict[str, Any], lines: int) -> str:
        """The last lines of a task's log that say how it went and why it failed."""
        events = self.log(run, instance)
        return "\n".join([line for event in events for line in _shown(event)][-lines:])

    def log(self, run: DagRun, instance: dict[str, Any]) -> list[dict[str, Any]]:
        """What a try of a task has logged so far: events with `level`, `logger` and `event`."""
        answer = self._call(
            "GET",
            f"{_path(run)}/taskInstances/{instance['task_id']}/logs/{instance['try_number']}",
            params={"map_index": instance["map_index"], "full_content": True},
            headers={"Accept": "application/json"},
        )
        return [event for event in answer.get("content", []) if isinstance(event, dict)]

    def _is_known(self, dag_id: str) -> bool:
        answer = self._client.get(f"/api/v2/dags/{dag_id}")
        return answer.status_code == httpx.codes.OK

    def _call(self, method: str, path: str, **options: Any) -> Any:
        # Only what is safe to do twice is asked for again when it may have been done already.
        lost = httpx.TransportError if method == "GET" else httpx.ConnectError
        try:
            retry = retrying(
                lambda error: isinstance(error, lost), timeout_s=client_limits().connect_for_s
            )
            answer = retry(self._client.request, method, path, **options)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            # An answer to a login may repeat what it does not like in it.
            shown = error.response.text[:300] if path != _LOGIN else ""
            detail = f"{error.response.status_code} {shown}".rstrip()
            raise ServiceError(f"Airflow refused {method} {path}: {detail}") from None
        except httpx.HTTPError as error:
            raise ServiceError(
                f"Airflow cannot be reached at {self.settings.airflow_url}: {error}",
                "Run `nightscore up`, or `nightscore doctor` to see what is wrong.",
            ) from None
        return answer.json()


class _Followed:
    """A run whose news are told once."""

    def __init__(
        self,
        api: AirflowApi,
        run: DagRun,
        on_task: Callable[[DagRun, TaskState], None],
        on_log: Callable[[DagRun, str, str], None],
        verbose: bool,
    ) -> None:
        self._api, self._run, self._verbose = api, run, verbose
        self._on_task, self._on_log = on_task, on_log
        self._states: dict[str, str] = {}
        self._read: dict[tuple[str, int], int] = {}
        self._logs_at = 0.0

    def tell(self) -> None:
        """Call back with what is new since the last time."""
        logs_are_due = time.monotonic() >= self._logs_at
        if logs_are_due:
            self._logs_at = time.monotonic() + LOG_POLL_S
        for found in self._api.task_instances(self._run):
            name, state = _name(found), found["state"]
            if state is None:
                continue
            is_news = self._states.get(name) != state
            if (logs_are_due and state == "running") or (is_news and self._verbose):
                self._tell_log(name, found)
            if is_news:
                self._states[name] = state
                self._on_task(self._run, TaskState(name, state, *self._how(found)))

    def _tell_log(self, name: str, instance: dict[str, Any]) -> None:
        # Only for whoever watches: a log that cannot be read must not end the wait.
        with suppress(ServiceError):
            events = self._api.log(self._run, instance)
            key = name, instance["try_number"]
            new = events[self._read.get(key, 0) :]
            self._read[key] = len(events)
            if self._verbose:
                lines = [line for event in new for line in _everything(event)]
            else:
                lines = [str(event["event"]) for event in new if _is_own(event)][-1:]
            for line in lines:
                self._on_log(self._run, name, line)

    def _how(self, instance: dict[str, Any]) -> tuple[float, str]:
        reason = ""
        if instance["state"] in ("failed", "up_for_retry"):
            with suppress(ServiceError):
                reason = self._api.log_lines(self._run, instance, lines=1)
        return float(instance["duration"] or 0), reason


def _shown(event: dict[str, Any]) -> Iterator[str]:
    """The lines of a log event that say how a task failed: what `ml` says, and errors."""
    if event.get("level") in ("warning", "error", "critical") or _is_own(event):
        level = event.get("level", "info")
        yield event["event"] if level == "info" else f"{level}: {event['event']}"
    yield from _errors(event)


def _everything(event: dict[str, Any]) -> Iterator[str]:
    yield f"{event.get('level', 'info')}: {event.get('logger', '')}: {event['event']}"
    yield from _errors(event)


def _errors(event: dict[str, Any]) -> Iterator[str]:
    for detail in event.get("error_detail") or ():
        yield f"{detail['exc_type']}: {detail['exc_value']}"


def _is_own(event: dict[str, Any]) -> bool:
    return str(event.get("logger", "")).startswith("ml.")


def _name(instance: dict[str, Any]) -> str:
    """The id of a task instance's task, with its index where it is mapped."""
    index = f"[{instance['map_index']}]" if instance["map_index"] >= 0 else ""
    return f"{instance['task_id']}{index}"


def _path(run: DagRun) -> str:
    return f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}"
