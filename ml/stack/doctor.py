"""What is wrong with an installation, in a line each; for the local stack and for any other."""

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ml.errors import NightscoreError
from ml.settings import Settings, settings, state_folder
from ml.stack.layout import Layout
from ml.stack.neighbours import stranger

_TIMEOUT_S = 4
_MIN_FREE_BYTES = 2 * 1024**3
_START = "run `nightscore up`, or correct its address in the environment"


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was looked at, whether it is right, what was seen or to do."""

    name: str
    ok: bool
    message: str


class _Wrong(Exception):
    """A check's finding, with what to do."""


def examine() -> Iterator[Check]:
    """All checks, one after the other; none raises and none takes more than seconds."""
    current = settings()
    checks: dict[str, Callable[[Settings], str]] = {
        "python": _python,
        "disk": _disk,
        "configuration": _configuration,
        "postgres": _postgres,
        "analyst": _analyst,
        "s3": _s3,
        "mlflow": _mlflow,
        "airflow": _airflow,
        "device": _device,
    }
    for name, check in checks.items():
        try:
            yield Check(name, True, check(current))
        except Exception as error:  # a doctor that stops half-way helps nobody
            yield Check(name, False, _stranger(name, current) or _finding(error))


def _finding(error: Exception) -> str:
    reason = " ".join(str(error).split())
    if isinstance(error, _Wrong | NightscoreError):
        return reason
    return f"{type(error).__name__}: {reason[:300]}"


def _stranger(name: str, current: Settings) -> str:
    """What to do when another stack or program answers where this stack's server should: what it
    says of our password is true and no help. "" when that is not so.
    """
    addresses = {
        "postgres": ("postgres", current.database_url.get_secret_value()),
        "analyst": ("postgres", current.analyst_url.get_secret_value()),
        "s3": ("s3", current.s3_endpoint),
        "mlflow": ("mlflow", current.mlflow_uri),
        "airflow": ("airflow", current.airflow_url),
    }
    if name not in addresses:
        return ""
    service, address = addresses[name]
    where = urlsplit(address)
    layout = Layout(state_folder())
    try:
        who = stranger(layout, service, where.hostname, where.port)
    except ValueError:  # no port at all
        return ""
    if not who:
        return ""
    return (
        f"{who} answers at {where.hostname}:{where.port}, not this stack ({layout.home}): "
        "run `nightscore up`, which chooses other ports, or stop the other one"
    )


def _python(_: Settings) -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise _Wrong(f"Python {platform.python_version()}: install 3.11, 3.12 or 3.13")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _disk(_: Settings) -> str:
    folder = state_folder()
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if free < _MIN_FREE_BYTES:
        raise _Wrong(f"{free / 1e9:.1f} GB free for {folder}: free at least 2 GB")
    return f"{free / 1e9:.0f} GB free for {folder}"


def _configuration(_: Settings) -> str:
    from ml.config.loading import config_path, configuration

    config = configuration()
    return f"{config_path()}: {len(config.streams)} streams, {len(config.models)} models"


def _postgres(current: Settings) -> str:
    where = _connect(current.require_database_url())
    from ml.database.migrate import is_migrated

    if not is_migrated():
        raise _Wrong(f"{where}: the tables are missing or old: run `nightscore migrate`")
    return where


def _analyst(current: Settings) -> str:
    return _connect(current.require_analyst_url())


def _connect(url: str) -> str:
    import psycopg2
    import sqlalchemy as sa

    from ml.database.connection import POSTGRES_PORT, describe_address

    parsed = sa.make_url(url)
    where = f"{parsed.username} at {describe_address(parsed)}"
    try:
        psycopg2.connect(
            host=parsed.host,
            port=parsed.port or POSTGRES_PORT,
            user=parsed.username,
            password=parsed.password,
            dbname=parsed.database,
            connect_timeout=_TIMEOUT_S,
        ).close()
    except psycopg2.OperationalError as error:
        reason = " ".join(str(error).split())
        if "authentication failed" in reason:
            raise _Wrong(f"{where}: wrong user or password: correct it in the URL") from None
        if "refused" in reason or "timeout" in reason or "translate host" in reason:
            raise _Wrong(f"Postgres cannot be reached, {where}: {_START}") from None
        raise _Wrong(f"{where}: {reason}") from None
    return where


def _s3(current: Settings) -> str:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    from ml.config.loading import configuration
    from ml.storage.object_store import split_uri

    bucket = split_uri(configuration().storage)[0].removeprefix("s3://")
    where = current.s3_endpoint or f"AWS {current.s3_region}"
    client = boto3.client(
        "s3",
        endpoint_url=current.s3_endpoint or None,
        aws_access_key_id=current.s3_access_key or None,
        aws_secret_access_key=current.s3_secret_key.get_secret_value() or None,
        aws_session_token=current.s3_session_token.get_secret_value() or None,
        region_name=current.s3_region,
        config=Config(
            connect_timeout=_TIMEOUT_S, read_timeout=_TIMEOUT_S, retries={"total_max_attempts": 1}
        ),
    )
    try:
        # An empty folder: some servers walk all of a bucket to answer for its first key.
        client.list_objects_v2(Bucket=bucket, Prefix="doctor/", Delimiter="/", MaxKeys=1)
    except ClientError as error:
        raise _Wrong(_s3_fault(dict(error.response["Error"]), where, bucket)) from None
    except BotoCoreError as error:
        reason = " ".join(str(error).split())
        raise _Wrong(f"S3 cannot be reached at {where}: {_START} ({reason})") from None
    return f"{where}, bucket {bucket}"


def _s3_fault(error: dict[str, Any], where: str, bucket: str) -> str:
    code = error.get("Code", "")
    if code == "SignatureDoesNotMatch":
        return f"S3 at {where}: the secret key is wrong: correct AWS_SECRET_ACCESS_KEY"
    if code in ("InvalidAccessKeyId", "InvalidAccessKeyID"):
        return f"S3 at {where}: the key id is unknown: correct AWS_ACCESS_KEY_ID"
    if code in ("NoSuchBucket", "404"):
        return f"S3 at {where}: there is no bucket {bucket!r}: make it, or correct `storage`"
    if code in ("AccessDenied", "403"):
        return f"S3 at {where}: these credentials may not list bucket {bucket!r}: grant it"
    return f"S3 at {where}: {code} {error.get('Message', '')}"


def _mlflow(current: Settings) -> str:
    import httpx

    where = current.require_mlflow_uri()
    address = f"{where.rstrip('/')}/api/2.0/mlflow/experiments/search"
    auth = (current.mlflow_username, current.mlflow_password.get_secret_value())
    try:
        answer = httpx.post(
            address, json={"max_results": 1}, auth=auth if auth[0] else None, timeout=_TIMEOUT_S
        )
    except httpx.HTTPError as error:
        raise _Wrong(f"MLflow cannot be reached at {where}: {_START} ({error})") from None
    if answer.status_code in (401, 403):
        raise _Wrong(
            f"MLflow at {where} refuses user {auth[0]!r}: correct MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    if answer.status_code != httpx.codes.OK:
        raise _Wrong(f"MLflow at {where} answers {answer.status_code}: see its log")
    return where


def _airflow(current: Settings) -> str:
    import httpx

    where = current.airflow_url
    if not where:
        raise _Wrong(f"NIGHTSCORE_AIRFLOW_URL is not set: {_START}")
    try:
        answer = httpx.get(f"{where.rstrip('/')}/api/v2/monitor/health", timeout=_TIMEOUT_S)
        health = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise _Wrong(f"Airflow cannot be reached at {where}: {_START} ({error})") from None
    parts = ("metadatabase", "scheduler", "dag_processor")
    ill = [name for name in parts if health.get(name, {}).get("status") != "healthy"]
    if ill:
        raise _Wrong(f"Airflow at {where}: {', '.join(ill)} not healthy: see `nightscore status`")
    from ml.stack.airflow_client import AirflowApi

    with AirflowApi(current) as api:
        if broken := api.import_errors():
            raise _Wrong(f"Airflow at {where} cannot read a DAG file: {broken}")
    return where


def _device(_: Settings) -> str:
    from ml.program.device import select_device

    if select_device() == "cpu":
        return "cpu (no GPU)"
    import torch

    return torch.cuda.get_device_name()
