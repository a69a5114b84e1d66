"""Upload many small objects: in parallel, and only those that are not in the store yet."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ml.parallel import parallel_map
from ml.storage.object_store import object_store

THREADS = 16

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class UploadResult:
    """The result of an upload.

    Attributes:
        uris: URIs of all objects, whether they were written or not.
        written: Number of objects that were written.
    """

    uris: frozenset[str]
    written: int


def upload(
    objects: Iterable[tuple[str, bytes]], prefixes: Iterable[str], on_progress: OnProgress
) -> UploadResult:
    """Upload objects, except those that the store already has with the same content.

    So an upload that was interrupted can be repeated.

    Args:
        objects: Pairs of URI and content; read while the upload proceeds.
        prefixes: Folders that are listed to find the objects that the store already has.
        on_progress: Called with the number of objects that are done.

    Raises:
        ServiceError: The store fails, or cannot be reached.
    """
    existing = {
        info.uri: (info.etag, info.size)
        for prefix in prefixes
        for page in object_store().list_pages(prefix)
        for info in page
    }

    def put(item: tuple[str, bytes]) -> tuple[str, bool]:
        uri, content = item
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if existing.get(uri) == (etag, len(content)):
            return uri, False
        object_store().put(uri, content)
        return uri, True

    uris, written = set(), 0
    for uri, was_written in parallel_map(put, objects, threads=THREADS, buffer_size=4 * THREADS):
        uris.add(uri)
        written += was_written
        on_progress(len(uris))
    return UploadResult(frozenset(uris), written)
