"""Download many small objects at once, such as the images of a shard.

obstore signs the URLs. libcurl makes the requests on one thread, over connections that stay open.
An object of a kilobyte takes a third of the CPU time of `ObjectStore.get`, whose threads wake each
other for every object (docs/decisions/0008-scoring-path.md). A request that fails is repeated with
`get`, which retries and explains errors.
"""

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from io import BytesIO
from itertools import groupby
from typing import Any, Generic, NamedTuple, TypeVar

import certifi
import obstore
import pycurl

from ml.errors import ServiceError
from ml.parallel import batched
from ml.settings import Settings
from ml.storage.clients import can_sign
from ml.storage.object_store import ObjectStore, needs_boto, split_uri, store_errors
from ml.timeouts import client_limits, retrying

CONNECTIONS = 64
# The sum of the listed sizes of all active transfers.
_MAX_ACTIVE_BYTES = 64 * 2**20
_SIGNING_BATCH = 64
_SIGNATURE_LIFETIME = timedelta(hours=1)
_HTTP_OK = 200

Key = TypeVar("Key")


class DownloadRequest(NamedTuple, Generic[Key]):
    """An object to download.

    Attributes:
        key: The caller's own identifier of the object.
        uri: The object's URI.
        size: Its size in bytes, as listed.
        etag: Its ETag without quotes, as listed.
    """

    key: Key
    uri: str
    size: int
    etag: str


class DownloadResult(NamedTuple, Generic[Key]):
    """An object that was downloaded.

    Attributes:
        key: The `key` of the request.
        content: The object's bytes; None if there is no such object any more.
        etag: Its ETag without quotes, which differs from that of the request if it was replaced.
    """

    key: Key
    content: bytes | None
    etag: str


def download(
    store: ObjectStore, requests: Iterable[DownloadRequest[Key]]
) -> Iterator[DownloadResult[Key]]:
    """Download objects, up to `CONNECTIONS` objects and 64 MiB at once.

    Args:
        store: The store to download from.
        requests: The objects; read while the download proceeds.

    Yields:
        The results, in the order in which they arrive.

    Raises:
        ServiceError: The store fails or returns fewer bytes than it listed, also when it is asked
            again.
    """
    transfers: _Transfers[Key] = _Transfers(store.settings)
    signed = _sign(store, requests)
    pending = next(signed, None)
    try:
        while pending is not None or transfers.active:
            while pending is not None and (pending[1] is None or transfers.can_start(pending[0])):
                request, url = pending
                if url is None:
                    yield _get_with_retries(store, request)
                else:
                    transfers.start(request, url)
                pending = next(signed, None)
            for request, result in transfers.completed():
                yield result or _get_with_retries(store, request)
    finally:
        transfers.close()


def _sign(
    store: ObjectStore, requests: Iterable[DownloadRequest[Key]]
) -> Iterator[tuple[DownloadRequest[Key], str | None]]:
    """Yield each request with a signed URL, or with None where obstore does not sign."""
    for batch in batched(requests, _SIGNING_BATCH):
        for (bucket, is_refused), group in groupby(batch, _bucket):
            members = list(group)
            if is_refused or not can_sign(store.client(bucket)):
                yield from ((request, None) for request in members)
                continue
            keys = [split_uri(request.uri)[1] for request in members]
            with store_errors(members[0].uri):
                urls = obstore.sign(store.client(bucket), "GET", keys, _SIGNATURE_LIFETIME)
            yield from zip(members, urls, strict=True)


def _bucket(request: DownloadRequest[Any]) -> tuple[str, bool]:
    bucket, key = split_uri(request.uri)
    return bucket, needs_boto(key)


def _get_with_retries(store: ObjectStore, request: DownloadRequest[Key]) -> DownloadResult[Key]:
    retry = retrying(
        lambda error: isinstance(error, _ShortReadError), timeout_s=client_limits().retry_for_s
    )
    try:
        return retry(_get, store, request)
    except FileNotFoundError:
        return DownloadResult(request.key, None, "")


class _ShortReadError(ServiceError):
    """The store returned fewer bytes than it listed for the same ETag: a fault of the store."""


def _get(store: ObjectStore, request: DownloadRequest[Key]) -> DownloadResult[Key]:
    content, etag = store.get(request.uri)
    if etag == request.etag and len(content) != request.size:
        raise _ShortReadError(
            f"The object store gave {len(content)} of the {request.size} bytes of {request.uri}"
        )
    return DownloadResult(request.key, content, etag)


class _Transfers(Generic[Key]):
    """Transfers of libcurl's multi interface (https://curl.se/libcurl/c/libcurl-multi.html)."""

    def __init__(self, settings: Settings) -> None:
        self.active: dict[Any, tuple[DownloadRequest[Key], BytesIO, BytesIO]] = {}
        self._bytes = 0
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, CONNECTIONS)
        self._idle = deque(_new_handle(settings) for _ in range(CONNECTIONS))

    def can_start(self, request: DownloadRequest[Key]) -> bool:
        """Return whether another transfer stays within the limits."""
        if not self.active:
            return True
        return bool(self._idle) and self._bytes + request.size <= _MAX_ACTIVE_BYTES

    def start(self, request: DownloadRequest[Key], url: str) -> None:
        """Start a transfer."""
        handle, content, header = self._idle.popleft(), BytesIO(), BytesIO()
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.WRITEDATA, content)
        handle.setopt(pycurl.WRITEHEADER, header)
        self._multi.add_handle(handle)
        self.active[handle] = request, content, header
        self._bytes += request.size

    def completed(self) -> Iterator[tuple[DownloadRequest[Key], DownloadResult[Key] | None]]:
        """Yield the transfers that are complete, with None as the result of one that failed.

        If there is none, wait a moment.
        """
        self._multi.perform()
        _, succeeded, failed = self._multi.info_read()
        if not succeeded and not failed:
            self._wait()
        for handle in succeeded:
            request, content, header = self._release(handle)
            etag = _etag(header.getvalue())
            # A response without ETag does not come from S3; one of another length may be cut short.
            is_as_listed = etag and content.tell() == request.size
            if is_as_listed and handle.getinfo(pycurl.RESPONSE_CODE) == _HTTP_OK:
                yield request, DownloadResult(request.key, content.getvalue(), etag)
            else:
                yield request, None
        for handle, _, _ in failed:
            yield self._release(handle)[0], None

    def _wait(self) -> None:
        timeout_ms = self._multi.timeout()
        timeout_s = min(timeout_ms / 1000, 1.0) if timeout_ms >= 0 else 1.0
        if timeout_s and self._multi.select(timeout_s) < 0:
            time.sleep(min(timeout_s, 0.01))  # there is no connection until a name is resolved

    def _release(self, handle: Any) -> tuple[DownloadRequest[Key], BytesIO, BytesIO]:
        self._multi.remove_handle(handle)
        self._idle.append(handle)
        request, content, header = self.active.pop(handle)
        self._bytes -= request.size
        return request, content, header

    def close(self) -> None:
        """Abort the active transfers, and close all connections."""
        for handle in self.active:
            self._multi.remove_handle(handle)
        for handle in (*self.active, *self._idle):
            handle.close()
        self._multi.close()


def _new_handle(settings: Settings) -> Any:
    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)  # signals are for the main thread only
    handle.setopt(pycurl.TCP_NODELAY, 1)
    handle.setopt(pycurl.CONNECTTIMEOUT_MS, round(1000 * client_limits().connect_timeout_s))
    handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)
    handle.setopt(pycurl.LOW_SPEED_TIME, math.ceil(client_limits().read_timeout_s))
    ca_bundle = settings.require_s3_ca_bundle() or os.environ.get("SSL_CERT_FILE")
    handle.setopt(pycurl.CAINFO, ca_bundle or certifi.where())
    if settings.s3_insecure_tls:
        handle.setopt(pycurl.SSL_VERIFYPEER, 0)
        handle.setopt(pycurl.SSL_VERIFYHOST, 0)
    return handle


def _etag(header: bytes) -> str:
    start = header.lower().rfind(b"\netag:")
    line = header[start + len(b"\netag:") :].split(b"\r\n", 1)[0] if start >= 0 else b""
    return line.strip().strip(b'"').decode("latin-1")
