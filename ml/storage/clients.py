"""obstore's clients of buckets: one function for each kind of object store, by the URI's scheme.

CONTRIBUTING.md has the recipe to add one.
"""

from collections.abc import Callable
from typing import Any

from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from ml.settings import Settings
from ml.timeouts import client_limits


def s3_client(name: str, settings: Settings) -> S3Store:
    """Return a client of an S3 bucket, with the credentials in `settings`."""
    return S3Store(name, **s3_options(settings))


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
    if settings.s3_access_key:
        options["access_key_id"] = settings.s3_access_key
        options["secret_access_key"] = settings.s3_secret_key.get_secret_value()
    if token := settings.s3_session_token.get_secret_value():
        options["session_token"] = token
    return options


CLIENTS: dict[str, Callable[[str, Settings], ObjectStore]] = {"s3": s3_client}


def can_sign(client: ObjectStore) -> bool:
    """Return whether obstore signs URLs of a client's objects, so that libcurl can read them."""
    return isinstance(client, S3Store | GCSStore | AzureStore)
