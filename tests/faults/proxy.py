"""A server that stands before the object store and answers wrongly on purpose.

Requests go through as they are, Host included, so that their signatures stay valid.
"""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


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


Decide = Callable[[str, str], Wrong | None]


class Proxy:
    """Use as a context manager; `decide(method, path)` says what to spoil, None: nothing.

    `spoilt` counts what was spoilt, `seen` the requests by method.
    """

    def __init__(self, upstream: str, decide: Decide = lambda method, path: None) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.decide = decide
        self.spoilt = 0
        self.seen: Counter[str] = Counter()
        self._counting = threading.Lock()

    def __enter__(self) -> "Proxy":
        proxy = self

        class Handler(_Handler):
            def wrong(self) -> Wrong | None:
                found = proxy.decide(self.command, self.path)
                with proxy._counting:
                    proxy.seen[self.command] += 1
                    proxy.spoilt += found is not None
                return found

        Handler.upstream = self.upstream
        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = ""

    def wrong(self) -> Wrong | None:
        raise NotImplementedError

    def _handle(self) -> None:
        wrong = self.wrong() or Wrong()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(wrong.wait_s)
        if wrong.status:
            self._send(wrong.status, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        connection = http.client.HTTPConnection(self.upstream, timeout=120)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content, headers = answer.read(), dict(answer.getheaders())
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # as if the server itself had gone away
            return
        finally:
            connection.close()
        half = content[: len(content) // 2]
        if wrong.cut:
            self._send(answer.status, headers, half, length=len(content))
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        else:
            sent = half if wrong.shortened else content
            length = int(headers.get("Content-Length", 0)) if self.command == "HEAD" else None
            self._send(answer.status, headers, sent, length)

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def log_message(self, *_: object) -> None:
        """Nothing: there are thousands."""
