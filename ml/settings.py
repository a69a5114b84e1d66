"""Connections and secrets, read from the environment.

Variables of the process environment come first. The others are read from `stack.env` in the state
folder, which `nightscore up` writes for the local stack, so that every command works in the
checkout without an `export`. The URLs of the role that owns the tables and of the one that deletes
are in files of their own, which only a migration and `nightscore prune` open.
"""

import os
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml.errors import ConfigurationError

STACK_ENV = "stack.env"
OWNER_ENV = "conf/owner.env"
MAINTAINER_ENV = "conf/maintainer.env"


def state_folder() -> Path:
    """Return the folder of the local stack's files: `NIGHTSCORE_HOME`, else `.nightscore`."""
    return Path(os.environ.get("NIGHTSCORE_HOME", ".nightscore")).absolute()


class Settings(BaseSettings):
    """Addresses of the services, and logins.

    The environment variables are those of the services' own clients, so that one variable serves
    Nightscore, boto3 and MLflow.
    """

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    database_url: SecretStr = Field(SecretStr(""), validation_alias="NIGHTSCORE_DATABASE_URL")
    analyst_url: SecretStr = Field(SecretStr(""), validation_alias="NIGHTSCORE_ANALYST_URL")

    s3_endpoint: str = Field(
        "", validation_alias=AliasChoices("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    )
    s3_access_key: str = Field("", validation_alias="AWS_ACCESS_KEY_ID")
    s3_secret_key: SecretStr = Field(SecretStr(""), validation_alias="AWS_SECRET_ACCESS_KEY")
    s3_session_token: SecretStr = Field(SecretStr(""), validation_alias="AWS_SESSION_TOKEN")
    s3_region: str = Field(
        "us-east-1", validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION")
    )
    s3_ca_bundle: str = Field("", validation_alias="AWS_CA_BUNDLE")
    s3_insecure_tls: bool = Field(False, validation_alias="NIGHTSCORE_S3_INSECURE_TLS")
    s3_addressing_style: Literal["", "path", "virtual"] = Field(
        "", validation_alias="NIGHTSCORE_S3_ADDRESSING_STYLE"
    )

    mlflow_uri: str = Field("", validation_alias="MLFLOW_TRACKING_URI")
    mlflow_username: str = Field("", validation_alias="MLFLOW_TRACKING_USERNAME")
    mlflow_password: SecretStr = Field(SecretStr(""), validation_alias="MLFLOW_TRACKING_PASSWORD")

    airflow_url: str = Field("", validation_alias="NIGHTSCORE_AIRFLOW_URL")
    airflow_username: str = Field("", validation_alias="NIGHTSCORE_AIRFLOW_USERNAME")
    airflow_password: SecretStr = Field(
        SecretStr(""), validation_alias="NIGHTSCORE_AIRFLOW_PASSWORD"
    )

    def require_database_url(self) -> str:
        """Return the database URL of the writer.

        Raises:
            ConfigurationError: It is not set.
        """
        return _require(self.database_url, "NIGHTSCORE_DATABASE_URL")

    def require_owner_url(self) -> str:
        """Return the database URL of the role that owns the tables and runs migrations.

        It is read here and not with the other settings, so that only a migration holds it. Where it
        is not set, it is the writer's URL.

        Raises:
            ConfigurationError: Neither is set.
        """
        owner = _Owner(_env_file=state_folder() / OWNER_ENV)
        return owner.owner_url.get_secret_value() or self.require_database_url()

    def require_analyst_url(self) -> str:
        """Return the database URL of the read-only analyst.

        Raises:
            ConfigurationError: It is not set.
        """
        return _require(self.analyst_url, "NIGHTSCORE_ANALYST_URL")

    def require_maintainer_url(self) -> str:
        """Return the database URL of the role that deletes what `retention` limits.

        It is read here and not with the other settings, so that only a deletion holds it.

        Raises:
            ConfigurationError: It is not set.
        """
        return _require(_maintainer_url(), "NIGHTSCORE_MAINTAINER_URL")

    def has_maintainer(self) -> bool:
        """Return whether there is a login of the role that deletes."""
        return bool(_maintainer_url().get_secret_value())

    def require_s3_ca_bundle(self) -> str:
        """Return the file of the authorities that may sign S3's certificate; empty for the usual.

        Raises:
            ConfigurationError: There is no such file.
        """
        if self.s3_ca_bundle and not Path(self.s3_ca_bundle).is_file():
            raise ConfigurationError(
                f"AWS_CA_BUNDLE names {self.s3_ca_bundle}, which is not a file.",
                "Correct it, or `verify` of the Airflow connection nightscore_s3.",
            )
        return self.s3_ca_bundle

    def require_mlflow_uri(self) -> str:
        """Return MLflow's address.

        Raises:
            ConfigurationError: It is not set.
        """
        return _require(SecretStr(self.mlflow_uri), "MLFLOW_TRACKING_URI")


class _Owner(BaseSettings):
    """The login of the role that owns the tables."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    owner_url: SecretStr = Field(SecretStr(""), validation_alias="NIGHTSCORE_OWNER_URL")


class _Maintainer(BaseSettings):
    """The login of the role that deletes."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    maintainer_url: SecretStr = Field(SecretStr(""), validation_alias="NIGHTSCORE_MAINTAINER_URL")


def _maintainer_url() -> SecretStr:
    return _Maintainer(_env_file=state_folder() / MAINTAINER_ENV).maintainer_url


def environment_variables() -> set[str]:
    """Return the names of the environment variables that hold addresses and logins."""
    sections = (Settings, _Owner, _Maintainer)
    fields = (field for section in sections for field in section.model_fields.values())
    aliases = (field.validation_alias for field in fields)
    return {
        str(name)
        for alias in aliases
        for name in (alias.choices if isinstance(alias, AliasChoices) else [alias])
    }


def _require(value: SecretStr, name: str) -> str:
    if not value.get_secret_value():
        raise ConfigurationError(
            f"{name} is not set.",
            "Run `nightscore up` for the local stack, or set it in the environment.",
        )
    return value.get_secret_value()


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, which are read once.

    Tests that change the environment call `settings.cache_clear()`.
    """
    return Settings(_env_file=state_folder() / STACK_ENV)


def mlflow_verification(address: str) -> ssl.SSLContext | bool:
    """Return what httpx checks MLflow's certificate with: the choice of MLflow's own client."""
    if urlsplit(address).scheme == "http":
        # No certificate is expected. An empty context saves the time to read all authorities'.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        return False
    for name in ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(name):
            if Path(path).is_dir():
                return ssl.create_default_context(capath=path)
            return ssl.create_default_context(cafile=path)
    return True
