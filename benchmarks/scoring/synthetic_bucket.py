"""A bucket of any size that takes no room.

    python -m benchmarks.scoring.synthetic_bucket PORT IMAGES [any-night]

Speaks as much of S3 as a scoring run asks for: pages of a listing, objects, and writes, which it
forgets. Every key of the night is there, or of any night of any stream, with the content of one of
a thousand drawn JPEGs. It checks no signature and listens on 127.0.0.1 only.
"""

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from benchmarks.scoring.workloads import WORKLOADS, draw_images
from ml.storage.object_store import split_uri

HOST = "127.0.0.1"
DISTINCT = 1000
_PAGE = 1000
_FOLDER = split_uri(WORKLOADS["spill"].prefix)[1] + "/"
ANY_NIGHT = "any-night"
_ENTRY = (
    "<Contents><Key>%s%08d.jpg</Key><LastModified>2026-01-01T12:00:00.000Z</LastModified>"
    "<ETag>&quot;%s&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class Bucket:
    """What is in it: `count` keys below the night's folder, or below that of any night."""

    def __init__(self, count: int, contents: Sequence[bytes], *, any_night: bool = False) -> None:
        self.count = count
        self.any_night = any_night
        self.etags = [
            hashlib.md5(content, usedforsecurity=False).hexdigest() for content in contents
        ]
        self.sizes = [len(content) for content in contents]
        self.answers = [
            _answer("200 OK", content, f'ETag: "{etag}"\r\nContent-Type: image/jpeg\r\n')
            for content, etag in zip(contents, self.etags, strict=True)
        ]

    def get(self, target: str) -> bytes:
        """The answer to GET of a path with its query."""
        url = urlsplit(target)
        if "list-type=2" in url.query:
            return self._page({name: values[0] for name, values in parse_qs(url.query).items()})
        name = url.path.rpartition("/")[2].removesuffix(".jpg")
        if not name.isdecimal() or int(name) >= self.count:
            return _answer("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>")
        return self.answers[int(name) % len(self.answers)]

    def _page(self, query: dict[str, str]) -> bytes:
        first = int(query.get("continuation-token", 0))
        folder = query.get("prefix", "")
        count = self.count if folder == _FOLDER or (self.any_night and "/dt=" in folder) else 0
        last = min(first + _PAGE, count)
        kinds = len(self.etags)
        entries = "".join(
            _ENTRY % (folder, n, self.etags[n % kinds], self.sizes[n % kinds])
            for n in range(first, last)
        )
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < count else ""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
            f"<Name>nightscore</Name><Prefix>{folder}</Prefix>"
            f"<KeyCount>{last - first}</KeyCount><MaxKeys>{_PAGE}</MaxKeys>"
            f"<IsTruncated>{str(last < count).lower()}</IsTruncated>{more}{entries}"
            "</ListBucketResult>"
        )
        return _answer("200 OK", body.encode(), "Content-Type: application/xml\r\n")


def _answer(status: str, body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


class Connection(asyncio.Protocol):
    """A connection that stays open; one request follows the other."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the answers."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1")
            body = _content_length(head) if head.startswith("PUT ") else 0
            if len(self.buffer) < end + 4 + body:
                return
            self.buffer = self.buffer[end + 4 + body :]
            if body:
                self.transport.write(_answer("200 OK", b"", 'ETag: "forgotten"\r\n'))
            else:
                self.transport.write(self.bucket.get(head.split(" ", 2)[1]))


def _content_length(head: str) -> int:
    lines = (line.partition(":") for line in head.split("\r\n")[1:])
    return next((int(value) for name, _, value in lines if name.lower() == "content-length"), 0)


async def serve(port: int, bucket: Bucket) -> None:
    """Answer requests until the process is killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(bucket), HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    contents = draw_images("spill", DISTINCT)
    asyncio.run(
        serve(
            int(sys.argv[1]),
            Bucket(int(sys.argv[2]), contents, any_night=ANY_NIGHT in sys.argv[3:]),
        )
    )
