"""A proxy before the object store or MLflow that injects faults into some answers.

Requests are forwarded unchanged, with their header Host, so that their signatures stay valid.
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


class HttpRequest(NamedTuple):
    """A request: its method, its path with the query, and its body."""

    method: str
    path: str
    body: bytes


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer.

    Attributes:
        status: sent instead of the answer, unless it is 0.
        wait_s: how long the answer is delayed.
        cut: the connection ends after half of the body.
        shortened: the body is half as long, with a Content-Length that says so.
    """

    status: int = 0
    wait_s: float = 0.0
    cut: bool = False
    shortened: bool = False


Decide = Callable[[HttpRequest], Fault | None]


class Proxy(ThreadingHTTPServer):
    """A proxy that listens on a free port; use as a context manager.

    Args:
        upstream: the URL of the server.
        decide: called with every request; returns the fault of its answer, None for none.

    Attributes:
        url: the URL of the proxy.
        faults: the number of answers with a fault.
        seen: method → the number of requests.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, upstream: str, decide: Decide = lambda request: None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults = 0
        self.seen: Counter[str] = Counter()
        self._decide = decide
        self._counting = threading.Lock()

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def choose_fault(self, request: HttpRequest) -> Fault | None:
        """The fault of the answer; counts the request and the fault."""
        fault = self._decide(request)
        with self._counting:
            self.seen[request.method] += 1
            self.faults += fault is not None
        return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error: these tests are about clients that go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = HttpRequest(self.command, self.path, body)
        fault = self.server.choose_fault(request) or Fault()
        time.sleep(fault.wait_s)
        if fault.status:
            self._send(fault.status, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        try:
            answer, content = self._forward(body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # as if the server itself had gone away
            return
        half = content[: len(content) // 2]
        headers = dict(answer.getheaders())
        if fault.cut:
            self._send(answer.status, headers, half, length=len(content))
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        else:
            length = int(headers.get("Content-Length", 0)) if self.command == "HEAD" else None
            self._send(answer.status, headers, half if fault.shortened else content, length)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
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

    def log_message(self, *_: object) -> None:
        """Log nothing: there are thousands of requests."""


for _method in ("GET", "PUT", "POST", "PATCH", "HEAD", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._handle)
