"""What is wrong with an installation, one line per check; for the local stack and any other."""

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ml.errors import NightscoreError
from ml.settings import Settings, mlflow_verification, settings, state_folder
from ml.stack.layout import Layout
from ml.stack.port_conflicts import foreign_server

_TIMEOUT_S = 4
_MIN_FREE_BYTES = 2 * 1024**3
_MAX_REASON_LENGTH = 300
_HOW_TO_START = "run `nightscore up`, or correct its address in the environment"


@dataclass(frozen=True)
class Check:
    """The outcome of a check.

    Attributes:
        name: what was checked.
        ok: whether it is right.
        message: what was seen, or what is wrong and what to do.
    """

    name: str
    ok: bool
    message: str


class _CheckFailedError(Exception):
    """What a check has found wrong, and what to do."""


def run_checks() -> Iterator[Check]:
    """Run all checks, one after the other; none raises an error or takes more than seconds."""
    config = settings()
    checks: dict[str, Callable[[Settings], str]] = {
        "python": _check_python,
        "disk": _check_disk,
        "configuration": _check_configuration,
        "postgres": _check_postgres,
        "analyst": _check_analyst,
        "s3": _check_s3,
        "mlflow": _check_mlflow,
        "airflow": _check_airflow,
        "device": _check_device,
    }
    for name, check in checks.items():
        try:
            yield Check(name, True, check(config))
        except Exception as error:  # the other checks must still run
            yield Check(name, False, _port_conflict(name, config) or _reason(error))


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split())
    if isinstance(error, _CheckFailedError | NightscoreError):
        return reason
    return f"{type(error).__name__}: {reason[:_MAX_REASON_LENGTH]}"


def _port_conflict(name: str, config: Settings) -> str:
    """What to do when another server answers at the address of this stack's; empty otherwise.

    What the other server says, for instance of our password, is then no reason to change anything.
    """
    addresses = {
        "postgres": ("postgres", config.database_url.get_secret_value()),
        "analyst": ("postgres", config.analyst_url.get_secret_value()),
        "s3": ("s3", config.s3_endpoint),
        "mlflow": ("mlflow", config.mlflow_uri),
        "airflow": ("airflow", config.airflow_url),
    }
    if name not in addresses:
        return ""
    service, url = addresses[name]
    address = urlsplit(url)
    layout = Layout(state_folder())
    try:
        server = foreign_server(layout, service, address.hostname, address.port)
    except ValueError:  # the port is not a number
        return ""
    if not server:
        return ""
    return (
        f"{server} answers at {address.hostname}:{address.port}, not this stack ({layout.home}): "
        "run `nightscore up`, which chooses other ports, or stop the other one"
    )


def _check_python(_: Settings) -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise _CheckFailedError(f"Python {platform.python_version()}: install 3.11, 3.12 or 3.13")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _check_disk(_: Settings) -> str:
    folder = state_folder()
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if free < _MIN_FREE_BYTES:
        raise _CheckFailedError(f"{free / 1e9:.1f} GB free for {folder}: free at least 2 GB")
    return f"{free / 1e9:.0f} GB free for {folder}"


def _check_configuration(_: Settings) -> str:
    from ml.config.loading import config_path, configuration

    config = configuration()
    return f"{config_path()}: {len(config.streams)} streams, {len(config.models)} models"


def _check_postgres(config: Settings) -> str:
    place = _connect(config.require_database_url())
    from ml.database.migrate import is_migrated

    if not is_migrated():
        raise _CheckFailedError(f"{place}: the tables are missing or old: run `nightscore migrate`")
    return f"{place}; {_check_locks(config)}"


def _check_analyst(config: Settings) -> str:
    return _connect(config.require_analyst_url())


def _check_locks(config: Settings) -> str:
    """Whether the server has room for the locks of a backup and of the widest statement."""
    from ml.database import lock_table
    from ml.database.connection import engine_for

    with engine_for(config.require_database_url()).connect() as connection:
        table = lock_table.read(connection)
    if not table.is_enough:
        raise _CheckFailedError(
            f"room for {table.slots:,} locks, but a backup locks {table.tables:,} tables and a "
            f"statement that names no night {table.relations:,} relations: set "
            f"max_locks_per_transaction = {table.advised} (now {table.per_transaction}) and "
            "restart Postgres, or remove old nights"
        )
    return (
        f"room for {table.slots:,}, {table.needed:,} needed with {table.nights:,} nights; "
        f"enough for about {table.lasts_nights:,}"
    )


def _connect(url: str) -> str:
    """Connect to a database once; returns the user and the address."""
    import psycopg2
    import sqlalchemy as sa

    from ml.database.connection import describe_address

    parsed = sa.make_url(url)
    where = f"{parsed.username} at {describe_address(parsed)}"
    try:
        # The URL's options, too: those of TLS, several hosts.
        _, arguments = parsed.get_dialect()().create_connect_args(parsed)
        psycopg2.connect(**{**arguments, "connect_timeout": _TIMEOUT_S}).close()
    except psycopg2.OperationalError as error:
        reason = " ".join(str(error).split())
        if "authentication failed" in reason:
            raise _CheckFailedError(
                f"{where}: wrong user or password: correct it in the URL"
            ) from None
        if "refused" in reason or "timeout" in reason or "translate host" in reason:
            raise _CheckFailedError(
                f"Postgres cannot be reached, {where}: {_HOW_TO_START}"
            ) from None
        raise _CheckFailedError(f"{where}: {reason}") from None
    return where


def _check_s3(config: Settings) -> str:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    from ml.config.loading import configuration
    from ml.storage.clients import boto_addressing, boto_options
    from ml.storage.object_store import split_uri

    bucket = split_uri(configuration().storage)[0].removeprefix("s3://")
    address = config.s3_endpoint or f"AWS {config.s3_region}"
    client = boto3.client(
        "s3",
        config=Config(
            connect_timeout=_TIMEOUT_S,
            read_timeout=_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            **boto_addressing(config),
        ),
        **boto_options(config),
    )
    try:
        # An empty folder: to return one key, some servers read the list of the whole bucket.
        client.list_objects_v2(Bucket=bucket, Prefix="doctor/", Delimiter="/", MaxKeys=1)
    except ClientError as error:
        raise _CheckFailedError(_s3_fault(dict(error.response["Error"]), address, bucket)) from None
    except BotoCoreError as error:
        reason = " ".join(str(error).split())
        raise _CheckFailedError(
            f"S3 cannot be reached at {address}: {_HOW_TO_START} ({reason})"
        ) from None
    return f"{address}, bucket {bucket}"


def _s3_fault(error: dict[str, Any], address: str, bucket: str) -> str:
    code = error.get("Code", "")
    if code == "SignatureDoesNotMatch":
        return f"S3 at {address}: the secret key is wrong: correct AWS_SECRET_ACCESS_KEY"
    if code in ("InvalidAccessKeyId", "InvalidAccessKeyID"):
        return f"S3 at {address}: the key id is unknown: correct AWS_ACCESS_KEY_ID"
    if code in ("NoSuchBucket", "404"):
        return f"S3 at {address}: there is no bucket {bucket!r}: make it, or correct `storage`"
    if code in ("AccessDenied", "403"):
        return f"S3 at {address}: these credentials may not list bucket {bucket!r}: grant it"
    return f"S3 at {address}: {code} {error.get('Message', '')}"


def _check_mlflow(config: Settings) -> str:
    import httpx

    address = config.require_mlflow_uri()
    url = f"{address.rstrip('/')}/api/2.0/mlflow/experiments/search"
    auth = (config.mlflow_username, config.mlflow_password.get_secret_value())
    try:
        answer = httpx.post(
            url,
            json={"max_results": 1},
            auth=auth if auth[0] else None,
            timeout=_TIMEOUT_S,
            verify=mlflow_verification(address),
        )
    except httpx.HTTPError as error:
        raise _CheckFailedError(
            f"MLflow cannot be reached at {address}: {_HOW_TO_START} ({error})"
        ) from None
    if answer.status_code in (401, 403):
        raise _CheckFailedError(
            f"MLflow at {address} refuses user {auth[0]!r}: correct MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    if answer.status_code != httpx.codes.OK:
        raise _CheckFailedError(f"MLflow at {address} answers {answer.status_code}: see its log")
    return address


def _check_airflow(config: Settings) -> str:
    import httpx

    address = config.airflow_url
    if not address:
        raise _CheckFailedError(f"NIGHTSCORE_AIRFLOW_URL is not set: {_HOW_TO_START}")
    try:
        answer = httpx.get(f"{address.rstrip('/')}/api/v2/monitor/health", timeout=_TIMEOUT_S)
        health = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise _CheckFailedError(
            f"Airflow cannot be reached at {address}: {_HOW_TO_START} ({error})"
        ) from None
    components = ("metadatabase", "scheduler", "dag_processor")
    unhealthy = [name for name in components if health.get(name, {}).get("status") != "healthy"]
    if unhealthy:
        raise _CheckFailedError(
            f"Airflow at {address}: {', '.join(unhealthy)} not healthy: see `nightscore status`"
        )
    from ml.stack.airflow_client import AirflowApi

    with AirflowApi(config) as api:
        if errors := api.import_errors():
            raise _CheckFailedError(f"Airflow at {address} cannot read a DAG file: {errors}")
    return address


def _check_device(_: Settings) -> str:
    from ml.program.device import select_device

    if select_device() == "cpu":
        return "cpu (no GPU)"
    import torch

    return torch.cuda.get_device_name()
