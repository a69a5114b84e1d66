"""A server that stands before the object store or MLflow, sees every request, and answers some of
them wrongly on purpose.

Requests go through as they are, Host included, so that their signatures stay valid.
"""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive", "expect")


class Asked(NamedTuple):
    """A request: method, path with its query, and body."""

    method: str
    path: str
    body: bytes


@dataclass(frozen=True)
class Wrong:
    """How an answer is spoilt.

    `status`: sent instead of the answer. `wait_s`: before it. `cut`: the connection ends after half
    of the body. `shortened`: half of the body, with a length that says so.
    """

    status: int = 0
    wait_s: float = 0.0
    cut: bool = False
    shortened: bool = False


Decide = Callable[[Asked], Wrong | None]


class Proxy(ThreadingHTTPServer):
    """Listens on a free port; use as a context manager.

    `decide` sees every request and says how to spoil its answer; None: not at all. `spoilt` counts
    what was spoilt, `seen` the requests by method.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, upstream: str, decide: Decide = lambda asked: None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.spoilt = 0
        self.seen: Counter[str] = Counter()
        self._decide = decide
        self._counting = threading.Lock()

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def wrong(self, asked: Asked) -> Wrong | None:
        """How to spoil the answer, counted."""
        found = self._decide(asked)
        with self._counting:
            self.seen[asked.method] += 1
            self.spoilt += found is not None
        return found

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        wrong = self.server.wrong(Asked(self.command, self.path, body)) or Wrong()
        time.sleep(wrong.wait_s)
        if wrong.status:
            self._send(wrong.status, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        try:
            answer, content = self._ask(body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # as if the server itself had gone away
            return
        half = content[: len(content) // 2]
        headers = dict(answer.getheaders())
        if wrong.cut:
            self._send(answer.status, headers, half, length=len(content))
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        else:
            length = int(headers.get("Content-Length", 0)) if self.command == "HEAD" else None
            self._send(answer.status, headers, half if wrong.shortened else content, length)

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.server.upstream).netloc, timeout=120)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in (*_HOP_BY_HOP, "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = do_HEAD = do_DELETE = _handle  # noqa: N815

    def log_message(self, template: str, *args: object) -> None:
        """Nothing: there are thousands."""
