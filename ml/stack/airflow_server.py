"""Airflow: API server, scheduler, DAG processor and triggerer, with tasks on this machine."""

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import ml
from ml.errors import ServiceError
from ml.stack import postgres
from ml.stack.layout import HOST, Layout
from ml.stack.process import BIN, Process, http_get

USER = "admin"
REPOSITORY = Path(ml.__file__).parent.parent


def processes(
    layout: Layout, ports: dict[str, int], services: dict[str, str], analyst_url: str
) -> list[Process]:
    """Return Airflow's four processes.

    Args:
        layout: the stack's folders and passwords.
        ports: server → port.
        services: the variables that tell a task where the stack's services are and how to log in.
        analyst_url: the database URL of the analyst.
    """
    airflow = environment(layout, ports)
    with_services = airflow | services
    # Parsing a DAG file needs the configuration, but no login.
    config = {name: services[name] for name in ("NIGHTSCORE_HOME", "NIGHTSCORE_CONFIG")}
    without_login = airflow | config
    s3 = {name: services[name] for name in services if name.startswith("AWS_")}
    # The API server shows reports, which are in S3. In this folder it finds no `stack.env` with
    # other logins.
    for_pages = {"NIGHTSCORE_HOME": str(layout.airflow), "NIGHTSCORE_ANALYST_URL": analyst_url}
    # Logs are read from this machine's disk, so no process has to serve them.
    return [
        _process(("api-server",), airflow | s3 | for_pages, ports, "metadatabase"),
        # Tasks are children of the scheduler.
        _process(("scheduler", "--skip-serve-logs"), with_services, ports, "scheduler"),
        _process(("dag-processor",), without_login, ports, "dag_processor"),
        _process(("triggerer", "--skip-serve-logs"), without_login, ports, "triggerer"),
    ]


def environment(layout: Layout, ports: dict[str, int]) -> dict[str, str]:
    """Return Airflow's configuration as variables of the form AIRFLOW__SECTION__KEY."""
    secrets = layout.passwords
    base_url = f"http://{HOST}:{ports['airflow']}"
    database = postgres.url(layout, ports["postgres"], "airflow", "airflow")
    options = {
        ("core", "executor"): "LocalExecutor",
        ("core", "parallelism"): "4",
        ("core", "dags_folder"): str(REPOSITORY / "dags"),
        ("core", "plugins_folder"): str(REPOSITORY / "plugins"),
        ("core", "load_examples"): "False",
        ("core", "dags_are_paused_at_creation"): "True",
        ("core", "fernet_key"): secrets["airflow_fernet"],
        ("core", "simple_auth_manager_users"): f"{USER}:admin",
        ("core", "simple_auth_manager_passwords_file"): str(layout.conf / "airflow_passwords.json"),
        ("core", "execution_api_server_url"): f"{base_url}/execution/",
        # The machine's full name may not resolve; all tasks and logs are local anyway.
        ("core", "hostname_callable"): "socket.gethostname",
        ("database", "sql_alchemy_conn"): database,
        ("api", "host"): HOST,
        ("api", "port"): str(ports["airflow"]),
        ("api", "base_url"): base_url,
        ("api", "workers"): "1",
        ("api", "secret_key"): secrets["airflow_session"],
        ("api_auth", "jwt_secret"): secrets["airflow_jwt"],
        ("logging", "base_log_folder"): str(layout.airflow / "logs"),
        ("dag_processor", "min_file_process_interval"): "30",
        ("dag_processor", "refresh_interval"): "30",
        ("dag_processor", "parsing_processes"): "1",
        ("scheduler", "enable_health_check"): "False",
        # How often it looks for tasks of a scheduler that was killed, to retry them.
        ("scheduler", "orphaned_tasks_check_interval"): "60",
        ("usage_data_collection", "enabled"): "False",
    }
    variables = {
        f"AIRFLOW__{section}__{key}".upper(): value for (section, key), value in options.items()
    }
    # The user may set the scheduler's intervals.
    user_settings = {
        name: value for name, value in os.environ.items() if name.startswith("AIRFLOW__SCHEDULER__")
    }
    return (
        variables
        | user_settings
        | {
            "AIRFLOW_HOME": str(layout.airflow),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": HOST,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
    )


def prepare(layout: Layout) -> None:
    """Write the password of the administrator, who is the only user."""
    layout.write(
        layout.conf / "airflow_passwords.json", json.dumps({USER: layout.passwords["airflow"]})
    )


def migrate(layout: Layout, ports: dict[str, int]) -> None:
    """Bring Airflow's own tables up to date, unless this version of Airflow has done so before.

    Raises:
        ServiceError: the migration failed.
    """
    migrated = layout.airflow / "migrated"
    installed = version("apache-airflow")
    if migrated.exists() and migrated.read_text(encoding="utf-8") == installed:
        return
    result = subprocess.run(
        [BIN / "airflow", "db", "migrate"],
        env={"PATH": str(BIN), "HOME": str(layout.airflow), **environment(layout, ports)},
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise ServiceError(f"`airflow db migrate` failed: {result.stderr[-2000:]}")
    migrated.write_text(installed, encoding="utf-8")


def _process(
    arguments: tuple[str, ...],
    variables: dict[str, str],
    ports: dict[str, int],
    component: str,
) -> Process:
    name = f"airflow-{arguments[0]}"
    return Process(
        name=name,
        service="airflow",
        command=(str(BIN / "airflow"), *arguments),
        environment=variables,
        is_ready=lambda: _is_healthy(ports["airflow"], component),
        address=f"http://{HOST}:{ports['airflow']}" if name == "airflow-api-server" else "",
        stop_wait_s=20,
    )


def _is_healthy(port: int, component: str) -> bool:
    answer = http_get(port, "/api/v2/monitor/health")
    try:
        return answer is not None and json.loads(answer[1])[component]["status"] == "healthy"
    except (ValueError, KeyError, TypeError):
        return False
