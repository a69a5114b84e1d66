"""Airflow's REST API, as far as the command line needs it: start a DAG and follow its run.

Nothing of Airflow is imported; this talks to its server.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from ml.errors import ServiceError
from ml.network import network, retrying
from ml.settings import Settings, settings

_LOGIN = "/auth/token"
POLL_S = 1.5
LOG_POLL_S = 6.0
_DONE = ("success", "failed")


@dataclass(frozen=True, slots=True)
class DagRun:
    """A run of a DAG, by its ids."""

    dag_id: str
    run_id: str


class AirflowApi:
    """A client that is logged in; use as a context manager."""

    def __init__(self, current: Settings | None = None) -> None:
        self.settings = current or settings()
        if not self.settings.airflow_url:
            raise ServiceError("NIGHTSCORE_AIRFLOW_URL is not set.", "Run `nightscore up`.")
        self._client = httpx.Client(
            base_url=self.settings.airflow_url.rstrip("/"),
            timeout=httpx.Timeout(network().read_timeout_s, connect=network().connect_timeout_s),
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
        answer = self._call(
            "POST",
            f"/api/v2/dags/{dag_id}/dagRuns",
            json={"logical_date": None, "conf": conf or {}},
        )
        return DagRun(dag_id, answer["dag_run_id"])

    def wait(
        self,
        runs: list[DagRun],
        on_task: Callable[[DagRun, str, str], None] = lambda run, task, state: None,
        on_log: Callable[[DagRun, str, str], None] = lambda run, task, line: None,
        timeout_s: float = 3600,
    ) -> dict[DagRun, str]:
        """Follow runs to their end; returns the final state of each, `success` or `failed`.

        `on_task` hears of every change: run, task (with its index where it is mapped), state.
        `on_log` hears now and then what a running task has logged last.
        """
        deadline = time.monotonic() + timeout_s
        told: dict[tuple[DagRun, str, str], str] = {}
        states: dict[DagRun, str] = {}
        logs_at = 0.0
        while len(states) < len(runs):
            now = time.monotonic()
            if logs_are_due := now >= logs_at:
                logs_at = now + LOG_POLL_S
            for run in (run for run in runs if run not in states):
                state = self._call("GET", _path(run))["state"]
                for task, what, news in self._news(run, with_logs=logs_are_due):
                    if told.get((run, task, what)) != news:
                        told[run, task, what] = news
                        (on_log if what == "log" else on_task)(run, task, news)
                if state in _DONE:
                    states[run] = state
            if now > deadline:
                raise ServiceError(f"{[run.dag_id for run in runs]} did not end in {timeout_s} s.")
            time.sleep(POLL_S if len(states) < len(runs) else 0)
        return states

    def _news(self, run: DagRun, *, with_logs: bool) -> Iterator[tuple[str, str, str]]:
        """Of each task of a run its `state`, and the last line of its `log` while it runs."""
        for found in self._task_instances(run):
            if found["state"] is None:
                continue
            yield _name(found), "state", found["state"]
            if with_logs and found["state"] == "running":
                # Only for whoever watches: a log that cannot be read must not end the wait.
                with suppress(ServiceError):
                    if line := self._log(run, found, lines=1):
                        yield _name(found), "log", line

    def failure(self, run: DagRun, lines: int = 15) -> str:
        """The first failed task of a run and the end of its log."""
        for found in self._task_instances(run):
            if found["state"] == "failed":
                return f"task {found['task_id']}:\n{self._log(run, found, lines)}"
        return "no task has failed; see the scheduler's log"

    def import_errors(self) -> str:
        """What Airflow could not read of the DAG files; empty when all is well."""
        found = self._call("GET", "/api/v2/importErrors")["import_errors"]
        return " ".join(f"{error['filename']}: {error['stack_trace']}" for error in found)

    def _task_instances(self, run: DagRun) -> list[dict[str, Any]]:
        answer = self._call("GET", f"{_path(run)}/taskInstances", params={"limit": 1000})
        instances: list[dict[str, Any]] = answer["task_instances"]
        return sorted(instances, key=lambda found: found["start_date"] or "9")

    def _log(self, run: DagRun, instance: dict[str, Any], lines: int) -> str:
        answer = self._call(
            "GET",
            f"{_path(run)}/taskInstances/{instance['task_id']}/logs/{instance['try_number']}",
            params={"map_index": instance["map_index"], "full_content": True},
            headers={"Accept": "application/json"},
        )
        shown = [line for event in answer.get("content", []) for line in _shown(event)]
        return "\n".join(shown[-lines:])

    def _is_known(self, dag_id: str) -> bool:
        answer = self._client.get(f"/api/v2/dags/{dag_id}")
        return answer.status_code == httpx.codes.OK

    def _call(self, method: str, path: str, **options: Any) -> Any:
        # Only what is safe to do twice is asked for again when it may have been done already.
        lost = httpx.TransportError if method == "GET" else httpx.ConnectError
        try:
            answer = retrying(lambda error: isinstance(error, lost), for_s=network().connect_for_s)(
                self._client.request, method, path, **options
            )
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


def _shown(event: str | dict[str, Any]) -> Iterator[str]:
    """The lines of a log event that are worth a terminal's space: what `ml` says, and errors."""
    if isinstance(event, str):
        return
    if event.get("level") in ("warning", "error", "critical") or str(
        event.get("logger", "")
    ).startswith("ml."):
        level = event.get("level", "info")
        yield event["event"] if level == "info" else f"{level}: {event['event']}"
    for detail in event.get("error_detail") or ():
        yield f"{detail['exc_type']}: {detail['exc_value']}"


def _name(instance: dict[str, Any]) -> str:
    """The id of a task instance's task, with its index where it is mapped."""
    index = f"[{instance['map_index']}]" if instance["map_index"] >= 0 else ""
    return f"{instance['task_id']}{index}"


def _path(run: DagRun) -> str:
    return f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}"
