"""A client of Airflow's REST API: start a DAG and follow its run.

It talks to Airflow's server and imports nothing of Airflow.
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

POLL_S = 1.5
LOG_POLL_S = 6.0
_LOGIN = "/auth/token"
_FINAL_STATES = ("success", "failed")
# The most task instances that Airflow returns in one answer.
_MAX_TASK_INSTANCES = 1000
_MAX_ANSWER_LENGTH = 300


@dataclass(frozen=True, slots=True)
class DagRun:
    """A run of a DAG.

    Attributes:
        dag_id: the DAG's id.
        run_id: the run's id.
    """

    dag_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class TaskState:
    """The state of a task of a run.

    Attributes:
        task: the task's id, with its index where it is mapped: "score_shards[3]".
        state: Airflow's name of the state, such as "running".
        seconds: how long it has run so far.
        reason: why it failed; empty if it did not.
    """

    task: str
    state: str
    seconds: float
    reason: str = ""


def run_page(run: DagRun) -> str:
    """Return the address of a run in Airflow's user interface."""
    return f"{settings().airflow_url.rstrip('/')}/dags/{run.dag_id}/runs/{run.run_id}"


def report_page(run_id: UUID) -> str:
    """Return the address of a scoring run's report (`plugins/nightscore_pages.py`)."""
    return f"{settings().airflow_url.rstrip('/')}/nightscore/reports/{run_id}"


class AirflowApi:
    """A client that logs in when it is entered as a context manager; threads may share it.

    Args:
        login: the address and the login; None for those of this process.

    Raises:
        ServiceError: no address is set.
    """

    def __init__(self, login: Settings | None = None) -> None:
        self.settings = login or settings()
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
        """Unpause a DAG, as soon as Airflow has read its file.

        Raises:
            ServiceError: the DAG has not appeared in time; the message has the import errors.
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

    def ensure_pool(self, name: str, slots: int, purpose: str) -> None:
        """Create a pool unless it exists: an administrator may have changed its slots."""
        if self._client.get(f"/api/v2/pools/{name}").status_code != httpx.codes.OK:
            pool = {"name": name, "slots": slots, "description": purpose}
            self._call("POST", "/api/v2/pools", json={**pool, "include_deferred": False})

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> DagRun:
        """Start a run of a DAG now."""
        # With Airflow's own ids, the address of a run is too long for one line.
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
        """Follow runs to their end.

        Args:
            runs: the runs.
            on_task: called with each change of a task's state.
            on_log: called every few seconds with run, task and the last line that `ml` has logged
                in a running task.
            timeout_s: how long the runs may take.
            verbose: call `on_log` with every line of every task, whichever library logged it.

        Returns:
            The final state of each run, `success` or `failed`.

        Raises:
            ServiceError: Airflow failed, or a run did not end in time.
        """
        deadline = time.monotonic() + timeout_s
        followers = {run: _RunFollower(self, run, on_task, on_log, verbose) for run in runs}
        states: dict[DagRun, str] = {}
        while len(states) < len(runs):
            for run in (run for run in runs if run not in states):
                state = self._call("GET", _path(run))["state"]
                followers[run].poll()
                if state in _FINAL_STATES:
                    states[run] = state
            if time.monotonic() > deadline:
                raise ServiceError(f"{[run.dag_id for run in runs]} did not end in {timeout_s} s.")
            time.sleep(POLL_S if len(states) < len(runs) else 0)
        return states

    def failure(self, run: DagRun, lines: int = 15) -> str:
        """Return the name of the first failed task of a run and the end of its log."""
        for instance in self.task_instances(run):
            if instance["state"] == "failed":
                return f"task {instance['task_id']}:\n{self.log_lines(run, instance, lines)}"
        return "no task has failed; see the scheduler's log"

    def import_errors(self) -> str:
        """Return why Airflow could not read DAG files; empty when it has read all of them."""
        errors = self._call("GET", "/api/v2/importErrors")["import_errors"]
        return " ".join(f"{error['filename']}: {error['stack_trace']}" for error in errors)

    def task_instances(self, run: DagRun) -> list[dict[str, Any]]:
        """Return the task instances of a run as Airflow describes them, by their start."""
        params = {"limit": _MAX_TASK_INSTANCES}
        answer = self._call("GET", f"{_path(run)}/taskInstances", params=params)
        instances: list[dict[str, Any]] = answer["task_instances"]
        # Those that have not started come last: "9" is after every date.
        return sorted(instances, key=lambda instance: instance["start_date"] or "9")

    def log_lines(self, run: DagRun, instance: dict[str, Any], lines: int) -> str:
        """Return the last lines of a task's log that say how it went and why it failed."""
        events = self.log(run, instance)
        return "\n".join([line for event in events for line in _important_lines(event)][-lines:])

    def log(self, run: DagRun, instance: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the log of a try of a task: events with `level`, `logger` and `event`."""
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
        # A request that changes something is retried only if it has not reached the server.
        transient = httpx.TransportError if method == "GET" else httpx.ConnectError
        retry = retrying(
            lambda error: isinstance(error, transient), timeout_s=client_limits().connect_for_s
        )
        try:
            answer = retry(self._client.request, method, path, **options)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            # The answer to a login may repeat the password that it refuses.
            text = error.response.text[:_MAX_ANSWER_LENGTH] if path != _LOGIN else ""
            detail = f"{error.response.status_code} {text}".rstrip()
            raise ServiceError(f"Airflow refused {method} {path}: {detail}") from None
        except httpx.HTTPError as error:
            raise ServiceError(
                f"Airflow cannot be reached at {self.settings.airflow_url}: {error}",
                "Run `nightscore up`, or `nightscore doctor` to see what is wrong.",
            ) from None
        return answer.json()


class _RunFollower:
    """Reports each change of a run's tasks, and each line of their logs, once."""

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
        self._events_read: dict[tuple[str, int], int] = {}
        self._next_log_poll = 0.0

    def poll(self) -> None:
        """Ask Airflow for the state of the run's tasks and report what is new."""
        logs_are_due = time.monotonic() >= self._next_log_poll
        if logs_are_due:
            self._next_log_poll = time.monotonic() + LOG_POLL_S
        for instance in self._api.task_instances(self._run):
            name, state = _name(instance), instance["state"]
            if state is None:
                continue
            has_changed = self._states.get(name) != state
            if (logs_are_due and state == "running") or (has_changed and self._verbose):
                self._report_log(name, instance)
            if has_changed:
                self._states[name] = state
                seconds = float(instance["duration"] or 0)
                task = TaskState(name, state, seconds, self._failure_reason(instance))
                self._on_task(self._run, task)

    def _report_log(self, name: str, instance: dict[str, Any]) -> None:
        # The log is for information only: if it cannot be read, the wait goes on.
        with suppress(ServiceError):
            events = self._api.log(self._run, instance)
            key = name, instance["try_number"]
            new_events = events[self._events_read.get(key, 0) :]
            self._events_read[key] = len(events)
            if self._verbose:
                lines = [line for event in new_events for line in _all_lines(event)]
            else:
                lines = [str(event["event"]) for event in new_events if _is_own(event)][-1:]
            for line in lines:
                self._on_log(self._run, name, line)

    def _failure_reason(self, instance: dict[str, Any]) -> str:
        if instance["state"] in ("failed", "up_for_retry"):
            with suppress(ServiceError):
                return self._api.log_lines(self._run, instance, lines=1)
        return ""


def _important_lines(event: dict[str, Any]) -> Iterator[str]:
    """The lines of a log event that say how a task went: those of `ml`, warnings and errors."""
    if event.get("level") in ("warning", "error", "critical") or _is_own(event):
        level = event.get("level", "info")
        yield event["event"] if level == "info" else f"{level}: {event['event']}"
    yield from _error_lines(event)


def _all_lines(event: dict[str, Any]) -> Iterator[str]:
    yield f"{event.get('level', 'info')}: {event.get('logger', '')}: {event['event']}"
    yield from _error_lines(event)


def _error_lines(event: dict[str, Any]) -> Iterator[str]:
    for detail in event.get("error_detail") or ():
        yield f"{detail['exc_type']}: {detail['exc_value']}"


def _is_own(event: dict[str, Any]) -> bool:
    return str(event.get("logger", "")).startswith("ml.")


def _name(instance: dict[str, Any]) -> str:
    """The id of the task, with its index where it is mapped."""
    index = f"[{instance['map_index']}]" if instance["map_index"] >= 0 else ""
    return f"{instance['task_id']}{index}"


def _path(run: DagRun) -> str:
    return f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}"
