"""obstore's clients of buckets: one function for each kind of object store, by the URI's scheme.

CONTRIBUTING.md has the recipe to add one.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from ml.settings import Settings
from ml.timeouts import client_limits

# obstore reads the authorities of TLS from it, and only when a client is created.
_CA_VARIABLE = "SSL_CERT_FILE"
_ca_lock = threading.Lock()


def s3_client(name: str, settings: Settings) -> S3Store:
    """Return a client of an S3 bucket, with the credentials and TLS options in `settings`.

    Raises:
        ConfigurationError: There is no file of the authorities that `settings` names.
    """
    options = s3_options(settings)
    if settings.s3_endpoint and settings.s3_addressing_style == "virtual":
        parts = urlsplit(settings.s3_endpoint)
        options["endpoint"] = parts._replace(netloc=f"{name}.{parts.netloc}").geturl()
    with _authorities(settings.require_s3_ca_bundle()):
        return S3Store(name, **options)


@contextmanager
def _authorities(ca_bundle: str) -> Iterator[None]:
    if not ca_bundle:
        yield
        return
    with _ca_lock:
        before = os.environ.get(_CA_VARIABLE)
        os.environ[_CA_VARIABLE] = ca_bundle
        try:
            yield
        finally:
            os.environ.pop(_CA_VARIABLE)
            if before is not None:
                os.environ[_CA_VARIABLE] = before


def s3_options(settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments of `S3Store`."""
    options: dict[str, Any] = {
        "region": settings.s3_region,
        **client_limits().obstore_options(),
    }
    if settings.s3_endpoint:
        options["endpoint"] = settings.s3_endpoint
        options["virtual_hosted_style_request"] = False
        options["client_options"]["allow_http"] = settings.s3_endpoint.startswith("http:")
    if settings.s3_addressing_style:
        options["virtual_hosted_style_request"] = settings.s3_addressing_style == "virtual"
    if settings.s3_insecure_tls:
        options["client_options"]["allow_invalid_certificates"] = True
    if settings.s3_access_key:
        options["access_key_id"] = settings.s3_access_key
        options["secret_access_key"] = settings.s3_secret_key.get_secret_value()
    if token := settings.s3_session_token.get_secret_value():
        options["session_token"] = token
    return options


def boto_options(settings: Settings) -> dict[str, Any]:
    """Return the keyword arguments of `boto3.client("s3")`, but for its `config`.

    Raises:
        ConfigurationError: There is no file of the authorities that `settings` names.
    """
    return {
        "endpoint_url": settings.s3_endpoint or None,
        "aws_access_key_id": settings.s3_access_key or None,
        "aws_secret_access_key": settings.s3_secret_key.get_secret_value() or None,
        "aws_session_token": settings.s3_session_token.get_secret_value() or None,
        "region_name": settings.s3_region,
        # None: the authorities that come with botocore.
        "verify": False if settings.s3_insecure_tls else settings.require_s3_ca_bundle() or None,
    }


def boto_addressing(settings: Settings) -> dict[str, Any]:
    """Return the part of a botocore `Config` that addresses buckets as obstore does."""
    style = settings.s3_addressing_style or ("path" if settings.s3_endpoint else "auto")
    return {"s3": {"addressing_style": style}}


CLIENTS: dict[str, Callable[[str, Settings], ObjectStore]] = {"s3": s3_client}


def can_sign(client: ObjectStore) -> bool:
    """Return whether obstore signs URLs of a client's objects, so that libcurl can read them."""
    return isinstance(client, S3Store | GCSStore | AzureStore)
