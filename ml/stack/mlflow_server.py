"""The MLflow server: runs and registry in Postgres, artifacts in S3, with users and passwords."""

from ml.stack import postgres
from ml.stack.layout import HOST, Layout
from ml.stack.process import BIN, Process, http_get

USER = "admin"


def process(layout: Layout, ports: dict[str, int], services: dict[str, str]) -> Process:
    """Return the server process.

    Args:
        layout: the stack's folders and passwords.
        ports: server → port.
        services: the variables that say where the stack's services are; those of S3 are used.
    """
    port, database = ports["mlflow"], ports["postgres"]
    return Process(
        name="mlflow",
        service="mlflow",
        command=(
            *(str(BIN / "mlflow"), "server", "--host", HOST, "--port", str(port)),
            *("--app-name", "basic-auth", "--workers", "1", "--serve-artifacts"),
        ),
        environment={
            # Not in the command line, which every user of the machine can read.
            "MLFLOW_BACKEND_STORE_URI": postgres.url(layout, database, "mlflow", "mlflow"),
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
            "MLFLOW_S3_ENDPOINT_URL": services["AWS_ENDPOINT_URL"],
            "MLFLOW_AUTH_CONFIG_PATH": str(layout.conf / "mlflow_auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": layout.passwords["mlflow_session"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "DO_NOT_TRACK": "true",
            "AWS_ACCESS_KEY_ID": services["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": services["AWS_SECRET_ACCESS_KEY"],
            "AWS_DEFAULT_REGION": services["AWS_REGION"],
        },
        is_ready=lambda: _is_ready(port),
        address=f"http://{HOST}:{port}",
    )


def prepare(layout: Layout, ports: dict[str, int]) -> None:
    """Write the configuration of MLflow's users, which are in a database of their own."""
    store = postgres.url(layout, ports["postgres"], "mlflow", "mlflow_auth")
    layout.write(
        layout.conf / "mlflow_auth.ini",
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {store}\n"
        f"admin_username = {USER}\n"
        f"admin_password = {layout.passwords['mlflow']}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # Checking a password takes a run of PBKDF2; once per minute is enough.
        "auth_cache_ttl_seconds = 60\n",
    )


def _is_ready(port: int) -> bool:
    answer = http_get(port, "/health")
    return answer is not None and answer[0] == 200
