"""The object store: everything Nightscore reads from and writes to S3 goes through here.

Objects are addressed by URI, `s3://BUCKET/KEY`. Reading and writing use obstore (a Rust client:
about a tenth of boto3's CPU cost an object, see docs/decisions/0003-s3-client.md). boto3 makes
buckets and serves the rare keys that obstore refuses: with control characters, or with an empty,
`.` or `..` segment.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import S3Store

from ml.errors import DataError, ServiceError
from ml.settings import Settings, settings
from ml.timeouts import client_limits

# What a listing in XML has in place of a control character; boto3 asks for keys in another form.
_UNREADABLE = "\ufffd"
_ODD = re.compile(r"[\x00-\x1f\x7f]|(^|/)\.{0,2}/|/\.{1,2}$")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of an object: `etag` without quotes, `size` in bytes."""

    uri: str
    etag: str
    size: int
    modified: datetime


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://BUCKET/KEY`; raises DataError for anything else."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise DataError(f"{uri!r} is not of the form s3://BUCKET/KEY.")
    return bucket, key


class ObjectStore:
    """S3 with the credentials of `settings`; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._buckets: dict[str, S3Store] = {}

    def bucket(self, name: str) -> S3Store:
        """The obstore handle of a bucket, made once."""
        if name not in self._buckets:
            self._buckets[name] = S3Store(name, **self._options())
        return self._buckets[name]

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "region": self.settings.s3_region,
            **client_limits().obstore_options(),
        }
        if self.settings.s3_endpoint:
            options["endpoint"] = self.settings.s3_endpoint
            options["virtual_hosted_style_request"] = False
            options["client_options"]["allow_http"] = self.settings.s3_endpoint.startswith("http:")
        if self.settings.s3_access_key:
            options["access_key_id"] = self.settings.s3_access_key
            options["secret_access_key"] = self.settings.s3_secret_key.get_secret_value()
        if token := self.settings.s3_session_token.get_secret_value():
            options["session_token"] = token
        return options

    @cached_property
    def boto(self) -> Any:
        """A boto3 client with the same credentials."""
        import boto3
        from botocore.config import Config

        secret = self.settings.s3_secret_key.get_secret_value()
        token = self.settings.s3_session_token.get_secret_value()
        return boto3.client(
            "s3",
            endpoint_url=self.settings.s3_endpoint or None,
            aws_access_key_id=self.settings.s3_access_key or None,
            aws_secret_access_key=secret or None,
            aws_session_token=token or None,
            region_name=self.settings.s3_region,
            config=Config(**client_limits().boto_config()),
        )

    def ensure_bucket(self, name: str) -> None:
        """Make the bucket unless it exists."""
        if name not in {bucket["Name"] for bucket in self.boto.list_buckets()["Buckets"]}:
            self.boto.create_bucket(Bucket=name)

    def pages(self, prefix: str) -> Iterator[list[ObjectInfo]]:
        """Pages of the objects below `prefix` (taken as a folder), in the order of their keys."""
        bucket, key = split(prefix)
        folder, last = key.rstrip("/") + "/", ""
        with store_errors(prefix):
            try:
                for page in obstore.list(self.bucket(bucket), folder, chunk_size=1000):
                    if any(_UNREADABLE in meta["path"] for meta in page):
                        yield from self._pages_by_boto(bucket, folder, after=last)
                        return
                    last = page[-1]["path"]
                    yield [
                        ObjectInfo(
                            f"s3://{bucket}/{meta['path']}",
                            (meta["e_tag"] or "").strip('"'),
                            meta["size"],
                            meta["last_modified"],
                        )
                        for meta in page
                    ]
            except ObstoreError as error:
                if "invalid path" not in str(error):
                    raise
                yield from self._pages_by_boto(bucket, folder, after=last)

    def _pages_by_boto(self, bucket: str, folder: str, after: str) -> Iterator[list[ObjectInfo]]:
        """The pages from the key `after` on, which one odd key would keep obstore from giving."""
        listing = self.boto.get_paginator("list_objects_v2")
        for page in listing.paginate(Bucket=bucket, Prefix=folder, StartAfter=after):
            yield [
                ObjectInfo(
                    f"s3://{bucket}/{found['Key']}",
                    found["ETag"].strip('"'),
                    found["Size"],
                    found["LastModified"],
                )
                for found in page.get("Contents", ())
            ]

    def folders(self, prefix: str) -> list[str]:
        """The URIs of the folders directly below `prefix`, without a final slash, sorted.

        Meant where folders hold folders: objects that lie beside them are listed in vain.
        """
        bucket, key = split(prefix)
        above = key.rstrip("/") + "/"
        with store_errors(prefix):
            try:
                found = obstore.list_with_delimiter(self.bucket(bucket), above)["common_prefixes"]
            except ObstoreError as error:
                if "invalid path" not in str(error):
                    raise
                found = [_UNREADABLE]
            if any(_UNREADABLE in folder for folder in found):
                found = self._folders_by_boto(bucket, above)
        return sorted(f"s3://{bucket}/{folder}" for folder in found)

    def _folders_by_boto(self, bucket: str, above: str) -> list[str]:
        listing = self.boto.get_paginator("list_objects_v2")
        return [
            found["Prefix"].rstrip("/")
            for page in listing.paginate(Bucket=bucket, Prefix=above, Delimiter="/")
            for found in page.get("CommonPrefixes", ())
        ]

    def get(self, uri: str) -> tuple[bytes, str]:
        """The object's bytes and its ETag, without quotes.

        Raises FileNotFoundError when it is gone, ServiceError when the store cannot be reached.
        """
        bucket, key = split(uri)
        with store_errors(uri):
            if is_odd(key):
                answer = self.boto.get_object(Bucket=bucket, Key=key)
                return answer["Body"].read(), answer["ETag"].strip('"')
            result = obstore.get(self.bucket(bucket), key)
            return bytes(result.bytes()), (result.meta["e_tag"] or "").strip('"')

    def put(self, uri: str, content: bytes, content_type: str = "") -> str:
        """Write an object whole; returns its ETag without quotes."""
        bucket, key = split(uri)
        attributes = {"Content-Type": content_type} if content_type else None
        with store_errors(uri):
            if is_odd(key):
                answer = self.boto.put_object(Bucket=bucket, Key=key, Body=content)
                return str(answer["ETag"]).strip('"')
            result = obstore.put(self.bucket(bucket), key, content, attributes=attributes)
            return (result["e_tag"] or "").strip('"')

    def exists(self, uri: str) -> bool:
        """Whether there is an object at `uri`."""
        bucket, key = split(uri)
        try:
            with store_errors(uri):
                obstore.head(self.bucket(bucket), key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects; one that is already gone is no error."""
        for uri in uris:
            bucket, key = split(uri)
            with store_errors(uri):
                try:
                    if is_odd(key):
                        self.boto.delete_object(Bucket=bucket, Key=key)
                    else:
                        obstore.delete(self.bucket(bucket), key)
                except FileNotFoundError:
                    continue


def is_odd(key: str) -> bool:
    """Whether obstore refuses the key: control characters, empty, `.` or `..` segments."""
    return _ODD.search(key) is not None


class store_errors:
    """Turns obstore's and boto3's errors into ours; `FileNotFoundError` passes through."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        response = getattr(error, "response", None) if _is_of_boto(error) else None
        if response and response["Error"]["Code"] == "NoSuchKey":
            raise FileNotFoundError(self.uri) from error
        failed = isinstance(error, ObstoreError) or _is_of_boto(error)
        if failed and not isinstance(error, FileNotFoundError):
            reason = str(error).split("\n", 1)[0]
            raise ServiceError(
                f"The object store failed at {self.uri}: {reason}",
                "Run `nightscore doctor` to see whether the store or its credentials are at fault.",
            ) from error


def _is_of_boto(error: BaseException | None) -> bool:
    """Whether boto3 has raised it, which is imported only where it is needed."""
    boto: Any = sys.modules.get("botocore.exceptions")
    return boto is not None and isinstance(error, boto.BotoCoreError | boto.ClientError)


@lru_cache(maxsize=1)
def object_store() -> ObjectStore:
    """The object store of this process."""
    return ObjectStore(settings())


def content_id(found: ObjectInfo) -> str:
    """The ETag where it is the MD5 of the content, else a hash of the bytes.

    An object that was uploaded in parts has an ETag with a dash, which depends on the parts.
    """
    if len(found.etag) == 32 and "-" not in found.etag:
        return found.etag
    content, _ = object_store().get(found.uri)
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
