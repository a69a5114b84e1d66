"""What is shown of a task's log: Nightscore's own lines; libraries' only where all is asked for."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ml.settings import Settings
from ml.stack import airflow_client

OWN = {"level": "info", "logger": "ml.training.train", "event": "epoch 3 of 8"}
LIBRARY = {"level": "warning", "logger": "urllib3.connectionpool", "event": "Retrying (Retry(...))"}
PRINTED = {"level": "error", "logger": "task.stderr", "event": "INFO mlflow.system_metrics"}
FAILED = {
    "level": "error",
    "logger": "task",
    "event": "Task failed with exception",
    "error_detail": [{"exc_type": "DataError", "exc_value": "there are no images"}],
}


TRIES = [  # of the task: the state, and what has been logged when Airflow is asked
    ("running", [OWN, LIBRARY, PRINTED]),
    ("running", [OWN, LIBRARY, PRINTED]),
    ("up_for_retry", [OWN, LIBRARY, PRINTED, FAILED]),
    ("success", []),
]


class _Airflow(BaseHTTPRequestHandler):
    """Answers as Airflow would, while a run of one task goes on."""

    polls = -1

    def do_POST(self) -> None:
        self._answer({"access_token": "token"})

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        state, events = TRIES[min(_Airflow.polls, len(TRIES) - 1)]
        if path.endswith("/taskInstances"):
            again = state == "success"
            task = {"task_id": "train", "map_index": -1, "state": state, "duration": 90}
            started = {"start_date": "2026-01-15", "try_number": 2 if again else 1}
            self._answer({"task_instances": [task | started]})
        elif "/logs/" in path:
            self._answer({"content": ["::group::", *events]})
        else:
            _Airflow.polls += 1
            ended = _Airflow.polls >= len(TRIES) - 1
            self._answer({"state": "success" if ended else "running"})

    def _answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def follow(monkeypatch):
    """Follows a run to its end; gives the lines and the states that were told."""
    monkeypatch.setattr(airflow_client, "POLL_S", 0.0)
    monkeypatch.setattr(airflow_client, "LOG_POLL_S", 0.0)
    _Airflow.polls = -1
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Airflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = Settings(NIGHTSCORE_AIRFLOW_URL=f"http://127.0.0.1:{server.server_port}")

    def follow_run(*, verbose: bool) -> tuple[list[str], list[airflow_client.TaskState]]:
        lines: list[str] = []
        states: list[airflow_client.TaskState] = []
        run = airflow_client.DagRun("retrain_a", "run-1")
        with airflow_client.AirflowApi(address) as api:
            final_states = api.wait(
                [run],
                lambda run, task: states.append(task),
                lambda run, task, line: lines.append(f"{task}: {line}"),
                verbose=verbose,
            )
        assert final_states == {run: "success"}
        return lines, states

    yield follow_run
    server.shutdown()


def test_of_a_running_task_nightscore_s_own_last_line_is_shown_once(follow):
    lines, states = follow(verbose=False)
    assert lines == ["train: epoch 3 of 8"]
    assert [task.state for task in states] == ["running", "up_for_retry", "success"]
    assert states[1] == airflow_client.TaskState(
        "train", "up_for_retry", 90, "DataError: there are no images"
    )


def test_verbose_shows_every_line_once(follow):
    lines, _ = follow(verbose=True)
    assert lines == [
        "train: info: ml.training.train: epoch 3 of 8",
        "train: warning: urllib3.connectionpool: Retrying (Retry(...))",
        "train: error: task.stderr: INFO mlflow.system_metrics",
        "train: error: task: Task failed with exception",
        "train: DataError: there are no images",
    ]


def test_how_a_task_failed_is_told_with_what_libraries_said():
    lines = [
        line for event in (OWN, LIBRARY, FAILED) for line in airflow_client._important_lines(event)
    ]
    assert lines == [
        "epoch 3 of 8",
        "warning: Retrying (Retry(...))",
        "error: Task failed with exception",
        "DataError: there are no images",
    ]
