"""A proxy in front of an S3 server that notes what was asked of it, in the words of IAM."""

import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

_OBJECT = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "DELETE": "s3:DeleteObject"}
_HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive")


class Request(NamedTuple):
    """An action and the resource that it was asked for, and the address, to be shown."""

    action: str
    resource: str
    address: str


def requests(method: str, address: str, body: bytes) -> list[Request]:
    """What IAM calls a request to an address of the form /BUCKET/KEY; of several keys, each."""
    parts = urlsplit(address)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = set(parse_qs(parts.query, keep_blank_values=True))
    arn, said = f"arn:aws:s3:::{bucket}", f"{method} {address}"
    if method == "POST" and not key and "delete" in query:
        keys = [found.text for found in ElementTree.fromstring(body).iter() if _is_key(found)]
        assert keys
        return [Request("s3:DeleteObject", f"{arn}/{key}", said) for key in keys]
    return [Request(_action(method, bucket, key, query), f"{arn}/{key}" if key else arn, said)]


def _is_key(element: ElementTree.Element) -> bool:
    return element.tag.rpartition("}")[2] == "Key"


def _action(method: str, bucket: str, key: str, query: set[str]) -> str:
    if not bucket:
        return "s3:ListAllMyBuckets"
    if not key:
        return {"GET": "s3:ListBucket", "HEAD": "s3:ListBucket", "PUT": "s3:CreateBucket"}[method]
    if "uploadId" in query and method == "DELETE":
        return "s3:AbortMultipartUpload"
    # PutObject covers all of an upload in parts, and what POST does with an object is part of one.
    return _OBJECT.get(method, "s3:PutObject")


class RecordingProxy(ThreadingHTTPServer):
    """Listens on a free port; use as a context manager. `requests` is what has passed."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        parsed = urlsplit(target)
        self.target = (parsed.hostname or "", parsed.port or 80)
        self.requests: list[Request] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "RecordingProxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RecordingProxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests += requests(self.command, self.path, body)
        upstream = HTTPConnection(*self.server.target, timeout=60)
        # With the Host that the client named: it is part of what the client has signed.
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in (*_HOP_BY_HOP, "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(body or None)
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in (*_HOP_BY_HOP, "content-length"):
                self.send_header(name, value)
        whole = answer.headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", whole or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        return
