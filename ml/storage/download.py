"""Many small objects from S3 at once: how a shard's images come in.

obstore signs the requests, with whatever credentials it was given; libcurl makes them, all on one
thread, over connections that stay open. An object of a kilobyte costs a third of the CPU time that
a call of `ObjectStore.get` takes, whose threads wake each other for every object
(docs/decisions/0008-scoring-path.md). Whatever does not succeed at once is left to `get`, which
retries and knows what went wrong.
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
from ml.storage.object_store import ObjectStore, is_odd, split, store_errors
from ml.timeouts import client_limits, retrying

CONNECTIONS = 64
# What the transfers under way may come to, by the sizes that were listed.
_BYTES_IN_FLIGHT = 64 * 2**20
_SIGNED_AT_ONCE = 64
_SIGNED_FOR = timedelta(hours=1)
_OK = 200

Key = TypeVar("Key")


class DownloadRequest(NamedTuple, Generic[Key]):
    """An object to download; `key` is the caller's own name for it, `bytes` and `etag` (without
    quotes) are as it was listed."""

    key: Key
    uri: str
    bytes: int
    etag: str


class DownloadResult(NamedTuple, Generic[Key]):
    """An object's content and its ETag without quotes; `content` is None when it is gone."""

    key: Key
    content: bytes | None
    etag: str


def download(
    store: ObjectStore, wanted: Iterable[DownloadRequest[Key]]
) -> Iterator[DownloadResult[Key]]:
    """Download objects, in the order in which they arrive.

    Args:
        wanted: read as the work proceeds. Up to `CONNECTIONS` transfers and 64 MiB are under way.

    Raises:
        ServiceError: the store failed, or gave fewer bytes than it had listed, and went on doing so
            when it was asked again.
    """
    transfers: _Transfers[Key] = _Transfers()
    waiting = _signed(store, wanted)
    upcoming = next(waiting, None)
    try:
        while upcoming is not None or transfers.under_way:
            while upcoming is not None and (upcoming[1] is None or transfers.has_room(upcoming[0])):
                request, url = upcoming
                if url is None:
                    yield _by_itself(store, request)
                else:
                    transfers.start(request, url)
                upcoming = next(waiting, None)
            for request, done in transfers.finished():
                yield done or _by_itself(store, request)
    finally:
        transfers.close()


def _signed(
    store: ObjectStore, wanted: Iterable[DownloadRequest[Key]]
) -> Iterator[tuple[DownloadRequest[Key], str | None]]:
    """Each object with the URL that it can be read from for an hour; None for a key that obstore
    cannot sign."""
    for batch in batched(wanted, _SIGNED_AT_ONCE):
        for (bucket, odd), group in groupby(batch, _bucket):
            requests = list(group)
            if odd:
                yield from ((request, None) for request in requests)
                continue
            keys = [split(request.uri)[1] for request in requests]
            with store_errors(requests[0].uri):
                urls = obstore.sign(store.bucket(bucket), "GET", keys, _SIGNED_FOR)
            yield from zip(requests, urls, strict=True)


def _bucket(request: DownloadRequest[Any]) -> tuple[str, bool]:
    bucket, key = split(request.uri)
    return bucket, is_odd(key)


def _by_itself(store: ObjectStore, request: DownloadRequest[Key]) -> DownloadResult[Key]:
    # A store that gives less than it listed, under the same ETag, is at fault, not the object.
    again = retrying(lambda error: isinstance(error, _Short), for_s=client_limits().retry_for_s)
    try:
        return again(_whole, store, request)
    except FileNotFoundError:
        return DownloadResult(request.key, None, "")


class _Short(ServiceError):
    """Not as many bytes as were listed, under the same ETag."""


def _whole(store: ObjectStore, request: DownloadRequest[Key]) -> DownloadResult[Key]:
    content, etag = store.get(request.uri)
    if etag == request.etag and len(content) != request.bytes:
        raise _Short(
            f"The object store gave {len(content)} of the {request.bytes} bytes of {request.uri}"
        )
    return DownloadResult(request.key, content, etag)


class _Transfers(Generic[Key]):
    """Transfers of libcurl's multi interface (https://curl.se/libcurl/c/libcurl-multi.html)."""

    def __init__(self) -> None:
        self.under_way: dict[Any, tuple[DownloadRequest[Key], BytesIO, BytesIO]] = {}
        self._bytes = 0
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, CONNECTIONS)
        self._free = deque(_handle() for _ in range(CONNECTIONS))

    def has_room(self, request: DownloadRequest[Key]) -> bool:
        if not self.under_way:
            return True
        return bool(self._free) and self._bytes + request.bytes <= _BYTES_IN_FLIGHT

    def start(self, request: DownloadRequest[Key], url: str) -> None:
        handle, content, header = self._free.popleft(), BytesIO(), BytesIO()
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.WRITEDATA, content)
        handle.setopt(pycurl.WRITEHEADER, header)
        self._multi.add_handle(handle)
        self.under_way[handle] = request, content, header
        self._bytes += request.bytes

    def finished(self) -> Iterator[tuple[DownloadRequest[Key], DownloadResult[Key] | None]]:
        """What has arrived by now, None instead of what failed; waits a moment for the first."""
        self._multi.perform()
        _, ended, failed = self._multi.info_read()
        if not ended and not failed:
            self._wait()
        for handle in ended:
            request, content, header = self._take(handle)
            etag = _etag(header.getvalue())
            # An answer without ETag is not S3's; one of another length may be cut short.
            as_listed = etag and content.tell() == request.bytes
            if as_listed and handle.getinfo(pycurl.RESPONSE_CODE) == _OK:
                yield request, DownloadResult(request.key, content.getvalue(), etag)
            else:
                yield request, None
        for handle, _, _ in failed:
            yield self._take(handle)[0], None

    def _wait(self) -> None:
        due_ms = self._multi.timeout()
        limit_s = min(due_ms / 1000, 1.0) if due_ms >= 0 else 1.0
        if limit_s and self._multi.select(limit_s) < 0:
            time.sleep(min(limit_s, 0.01))  # no connection yet: an address is being looked up

    def _take(self, handle: Any) -> tuple[DownloadRequest[Key], BytesIO, BytesIO]:
        self._multi.remove_handle(handle)
        self._free.append(handle)
        request, content, header = self.under_way.pop(handle)
        self._bytes -= request.bytes
        return request, content, header

    def close(self) -> None:
        for handle in self.under_way:
            self._multi.remove_handle(handle)
        for handle in (*self.under_way, *self._free):
            handle.close()
        self._multi.close()


def _handle() -> Any:
    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)  # it runs on a thread
    handle.setopt(pycurl.TCP_NODELAY, 1)
    handle.setopt(pycurl.CONNECTTIMEOUT_MS, round(1000 * client_limits().connect_timeout_s))
    handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)
    handle.setopt(pycurl.LOW_SPEED_TIME, math.ceil(client_limits().read_timeout_s))
    handle.setopt(pycurl.CAINFO, os.environ.get("SSL_CERT_FILE") or certifi.where())
    return handle


def _etag(header: bytes) -> str:
    start = header.lower().rfind(b"\netag:")
    line = header[start + len(b"\netag:") :].split(b"\r\n", 1)[0] if start >= 0 else b""
    return line.strip().strip(b'"').decode("latin-1")
