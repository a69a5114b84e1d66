"""The object store: all that Nightscore reads from S3 and writes to it passes through here.

Objects are addressed by URI, `s3://BUCKET/KEY`; `ml.storage.clients` has other schemes, if there
are any. obstore, a client in Rust, reads and writes them,
with about a tenth of boto3's CPU time per object (docs/decisions/0003-s3-client.md). boto3 is used
for the rare keys that obstore refuses: those with control characters, or with an empty, `.` or `..`
segment.
"""

import hashlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import ObjectStore as Client

from ml.errors import DataError, ServiceError
from ml.settings import Settings, settings
from ml.storage.clients import CLIENTS, boto_addressing, boto_options
from ml.timeouts import client_limits

# A listing in XML has this in place of a control character; boto3 asks for URL-encoded keys.
_REPLACEMENT_CHARACTER = "\ufffd"
# The most that S3's DeleteObjects takes.
_KEYS_PER_DELETION = 1000
_REFUSED_BY_OBSTORE = re.compile(r"[\x00-\x1f\x7f]|(^|/)\.{0,2}/|/\.{1,2}$")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing describes it.

    Attributes:
        uri: The object's URI.
        etag: Its ETag without quotes.
        size: Its size in bytes.
        modified: When it was last written.
    """

    uri: str
    etag: str
    size: int
    modified: datetime


def split_uri(uri: str) -> tuple[str, str]:
    """Split `s3://BUCKET/KEY` into `s3://BUCKET` and `KEY`.

    Raises:
        DataError: The URI is of another form.
    """
    scheme, _, rest = uri.partition("://")
    name, _, key = rest.partition("/")
    if scheme not in CLIENTS or not name:
        forms = " or ".join(f"{known}://BUCKET/KEY" for known in CLIENTS)
        raise DataError(f"{uri!r} is not of the form {forms}.")
    return f"{scheme}://{name}", key


class ObjectStore:
    """The buckets of an S3 service, with the credentials in `settings`; threads may share it.

    Its methods raise ServiceError when the service fails or cannot be reached.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._clients: dict[str, Client] = {}

    def client(self, bucket: str) -> Client:
        """Return obstore's client of a bucket such as `s3://images`; it is created once."""
        if bucket not in self._clients:
            scheme, _, name = bucket.partition("://")
            self._clients[bucket] = CLIENTS[scheme](name, self.settings)
        return self._clients[bucket]

    @cached_property
    def boto(self) -> Any:
        """A boto3 client with the same credentials, created when it is first used."""
        import boto3
        from botocore.config import Config

        config = Config(**client_limits().boto_config(), **boto_addressing(self.settings))
        return boto3.client("s3", config=config, **boto_options(self.settings))

    def list_pages(self, prefix: str) -> Iterator[list[ObjectInfo]]:
        """Yield pages of the objects in the folder `prefix`, in the order of their keys."""
        bucket, key = split_uri(prefix)
        folder, last = key.rstrip("/") + "/", ""
        with store_errors(prefix):
            try:
                for page in obstore.list(self.client(bucket), folder, chunk_size=1000):
                    if any(_REPLACEMENT_CHARACTER in meta["path"] for meta in page):
                        yield from self._list_pages_with_boto(bucket, folder, after=last)
                        return
                    last = page[-1]["path"]
                    yield [
                        ObjectInfo(
                            f"{bucket}/{meta['path']}",
                            (meta["e_tag"] or "").strip('"'),
                            meta["size"],
                            meta["last_modified"],
                        )
                        for meta in page
                    ]
            except ObstoreError as error:
                if "invalid path" not in str(error):
                    raise
                yield from self._list_pages_with_boto(bucket, folder, after=last)

    def _list_pages_with_boto(
        self, bucket: str, folder: str, after: str
    ) -> Iterator[list[ObjectInfo]]:
        """Yield the pages behind the key `after`; obstore fails at a page with a key it refuses."""
        listing = self.boto.get_paginator("list_objects_v2")
        for page in listing.paginate(Bucket=_name(bucket), Prefix=folder, StartAfter=after):
            yield [
                ObjectInfo(
                    f"{bucket}/{meta['Key']}",
                    meta["ETag"].strip('"'),
                    meta["Size"],
                    meta["LastModified"],
                )
                for meta in page.get("Contents", ())
            ]

    def list_folders(self, prefix: str) -> list[str]:
        """Return the URIs of the folders in the folder `prefix`, sorted, without a final slash.

        It is slow where the folder itself holds many objects, since these are listed, too.
        """
        bucket, key = split_uri(prefix)
        parent = key.rstrip("/") + "/"
        with store_errors(prefix):
            try:
                listing = obstore.list_with_delimiter(self.client(bucket), parent)
                folders = listing["common_prefixes"]
            except ObstoreError as error:
                if "invalid path" not in str(error):
                    raise
                folders = [_REPLACEMENT_CHARACTER]
            if any(_REPLACEMENT_CHARACTER in folder for folder in folders):
                folders = self._list_folders_with_boto(bucket, parent)
        return sorted(f"{bucket}/{folder}" for folder in folders)

    def _list_folders_with_boto(self, bucket: str, parent: str) -> list[str]:
        listing = self.boto.get_paginator("list_objects_v2")
        return [
            meta["Prefix"].rstrip("/")
            for page in listing.paginate(Bucket=_name(bucket), Prefix=parent, Delimiter="/")
            for meta in page.get("CommonPrefixes", ())
        ]

    def get(self, uri: str) -> tuple[bytes, str]:
        """Return an object's content and its ETag without quotes.

        Raises:
            FileNotFoundError: There is no such object.
            ServiceError: The store fails, or cannot be reached.
        """
        bucket, key = split_uri(uri)
        with store_errors(uri):
            if needs_boto(key):
                response = self.boto.get_object(Bucket=_name(bucket), Key=key)
                return response["Body"].read(), response["ETag"].strip('"')
            result = obstore.get(self.client(bucket), key)
            return bytes(result.bytes()), (result.meta["e_tag"] or "").strip('"')

    def put(self, uri: str, content: bytes, content_type: str = "") -> str:
        """Write an object whole, and return its ETag without quotes."""
        bucket, key = split_uri(uri)
        attributes = {"Content-Type": content_type} if content_type else None
        with store_errors(uri):
            if needs_boto(key):
                response = self.boto.put_object(Bucket=_name(bucket), Key=key, Body=content)
                return str(response["ETag"]).strip('"')
            result = obstore.put(self.client(bucket), key, content, attributes=attributes)
            return (result["e_tag"] or "").strip('"')

    def exists(self, uri: str) -> bool:
        """Return whether there is an object at `uri`."""
        bucket, key = split_uri(uri)
        try:
            with store_errors(uri):
                obstore.head(self.client(bucket), key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects, a thousand with a request; it is no error if one does not exist.

        What was deleted before an error stays deleted.
        """
        for batch in _batches(uris, _KEYS_PER_DELETION):
            keys: dict[str, list[str]] = defaultdict(list)
            for uri in batch:
                bucket, key = split_uri(uri)
                keys[bucket].append(key)
            for bucket in keys:
                with store_errors(bucket):
                    self._delete_keys(bucket, keys[bucket])

    def _delete_keys(self, bucket: str, keys: list[str]) -> None:
        for key in filter(needs_boto, keys):
            self.boto.delete_object(Bucket=_name(bucket), Key=key)
        plain = [key for key in keys if not needs_boto(key)]
        try:
            # S3 takes them in one request, and ignores keys that do not exist.
            obstore.delete(self.client(bucket), plain)
        except FileNotFoundError:  # of another service, which may have stopped there
            for key in plain:
                with suppress(FileNotFoundError):
                    obstore.delete(self.client(bucket), key)


def _batches(uris: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(uris)
    while batch := list(islice(remaining, size)):
        yield batch


def _name(bucket: str) -> str:
    """Return a bucket's name, as boto3 wants it.

    Raises:
        DataError: It is not a bucket of S3, so boto3 cannot stand in for obstore.
    """
    scheme, _, name = bucket.partition("://")
    if scheme != "s3":
        raise DataError(f"{bucket} holds a key with control characters, or an odd segment.")
    return name


def needs_boto(key: str) -> bool:
    """Return whether obstore refuses a key."""
    return _REFUSED_BY_OBSTORE.search(key) is not None


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn the errors of obstore and boto3 into Nightscore's own.

    Raises:
        FileNotFoundError: There is no such object.
        ServiceError: The store fails, or cannot be reached.
    """
    try:
        yield
    except FileNotFoundError:  # obstore's error is one
        raise
    except Exception as error:
        if _is_no_such_key(error):
            raise FileNotFoundError(uri) from error
        if not isinstance(error, ObstoreError) and not _is_boto_error(error):
            raise
        reason = str(error).split("\n", 1)[0]
        raise ServiceError(
            f"The object store failed at {uri}: {reason}",
            "Run `nightscore doctor` to see whether the store or its credentials are at fault.",
        ) from error


def _is_no_such_key(error: Exception) -> bool:
    response: Any = getattr(error, "response", None) or {}
    return _is_boto_error(error) and response.get("Error", {}).get("Code") == "NoSuchKey"


def _is_boto_error(error: Exception) -> bool:
    # boto3 is not imported for this: where it is not loaded, the error is not its own.
    boto: Any = sys.modules.get("botocore.exceptions")
    return boto is not None and isinstance(error, boto.BotoCoreError | boto.ClientError)


@lru_cache(maxsize=1)
def object_store() -> ObjectStore:
    """Return the object store of this process."""
    return ObjectStore(settings())


def content_hash(info: ObjectInfo) -> str:
    """Return a hash of an object's content, as a rule its MD5 in hexadecimal.

    It is the ETag, unless the object was uploaded in parts: then the ETag has a dash and depends on
    the parts, and the object is read.
    """
    if len(info.etag) == 32 and "-" not in info.etag:
        return info.etag
    content, _ = object_store().get(info.uri)
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
