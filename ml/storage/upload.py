"""Put many small objects into S3: in parallel, and only those that are not there yet."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ml.parallel import parallel_map
from ml.storage.object_store import object_store

THREADS = 16

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Uploaded:
    """What `upload` did: URIs of all objects given, and how many of them were written."""

    uris: frozenset[str]
    written: int


def upload(
    objects: Iterable[tuple[str, bytes]], prefixes: Iterable[str], on_progress: OnProgress
) -> Uploaded:
    """Write (URI, content) pairs; objects that are there with the same content are left alone.

    Args:
        objects: read as the work proceeds.
        prefixes: what to list to see what is there; so an upload that broke off can be repeated.
        on_progress: called with the number of objects done so far.
    """
    there = {
        found.uri: (found.etag, found.size)
        for prefix in prefixes
        for page in object_store().pages(prefix)
        for found in page
    }

    def put(item: tuple[str, bytes]) -> tuple[str, bool]:
        uri, content = item
        if there.get(uri) == (
            hashlib.md5(content, usedforsecurity=False).hexdigest(),
            len(content),
        ):
            return uri, False
        object_store().put(uri, content)
        return uri, True

    uris, written = set(), 0
    for uri, was_written in parallel_map(put, objects, threads=THREADS, buffer_size=4 * THREADS):
        uris.add(uri)
        written += was_written
        on_progress(len(uris))
    return Uploaded(frozenset(uris), written)
