"""Asks Airflow's API server, with the FAB auth manager, for the pages of Nightscore as several users.

`.venv-fab/bin/python -m tests.support.fab_pages STREAM PATH...` makes users with access to every DAG,
to the DAG `score_STREAM`, to the pages alone, and to nothing, and prints user → path → [status, text]
as JSON. Its environment holds what the API server of an installation has; Airflow's own database is
made in AIRFLOW_HOME. Connections are looked up there, so one of them is stored in it.
"""

import json
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "of a test"


def configure() -> None:
    home = Path(os.environ["AIRFLOW_HOME"])
    options = {
        "CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        "CORE__DAGS_FOLDER": str(home / "none"),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__FERNET_KEY": "",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "API__SECRET_KEY": "secret of a test, long enough for a signature",
        "API_AUTH__JWT_SECRET": "another secret of a test, long enough for a signature",
        "LOGGING__LOGGING_LEVEL": "ERROR",
        "FAB__UPDATE_FAB_PERMS": "True",
    }
    os.environ |= {f"AIRFLOW__{name}": value for name, value in options.items()}
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"  # as `airflow api-server` does
    sys.path.insert(0, str(REPOSITORY / "plugins"))


def make_users(stream: str) -> None:
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.providers.fab.www.security import permissions

    dag = permissions.resource_name(f"score_{stream}", permissions.RESOURCE_DAG)
    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        manager.bulk_sync_roles([{"role": "Reader", "perms": [(permissions.ACTION_CAN_READ, dag)]}])
        for name, role in {"admin": "Admin", "reader": "Reader", "nobody": "Public"}.items():
            found = manager.find_role(role)
            assert manager.add_user(name, name, name, f"{name}@example.org", found, PASSWORD)


def store_connection() -> None:
    """Move the connection of S3 from the environment into Airflow's database."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    fields = json.loads(os.environ.pop("S3_CONNECTION"))
    with create_session() as session:
        session.add(Connection(conn_id="nightscore_s3", **fields))


def ask(paths: list[str]) -> dict[str, dict[str, tuple[int, str]]]:
    from airflow.api_fastapi.app import create_app
    from starlette.testclient import TestClient

    answers: dict[str, dict[str, tuple[int, str]]] = {}
    with TestClient(create_app(), follow_redirects=False) as client:
        for name in ("admin", "reader", "nobody", "stranger"):
            headers = {"Accept": "text/html"}
            if name != "stranger":
                body = {"username": name, "password": PASSWORD}
                answer = client.post("/auth/token", json=body)
                assert answer.status_code == 201, answer.text
                headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            client.cookies.clear()
            answers[name] = {}
            for path in paths:
                answer = client.get(path, headers=headers)
                text = answer.headers.get("location", "") + answer.text
                answers[name][path] = (answer.status_code, text)
    return answers


def main(stream: str, *paths: str) -> None:
    configure()
    from airflow.utils.db import initdb

    initdb()
    store_connection()
    make_users(stream)
    print(json.dumps(ask(list(paths))))


if __name__ == "__main__":
    main(*sys.argv[1:])
