"""The endpoint that Prometheus scrapes."""

from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

METRICS_PATH = "/metrics"
# Says that the process answers, whatever Postgres does: a restart of it would not help Postgres.
HEALTH_PATH = "/-/healthy"


def server(registry: CollectorRegistry, host: str, port: int) -> WSGIServer:
    """Return a server that is bound to an address; `serve_forever` lets it answer.

    Args:
        registry: The metrics.
        host: The address to listen on.
        port: The port; 0 for a free one.
    """
    return make_server(host, port, _application(registry), ThreadingWSGIServer, _QuietHandler)


def _application(registry: CollectorRegistry) -> Any:
    metrics = make_wsgi_app(registry)

    def respond(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == METRICS_PATH:
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        found = path == HEALTH_PATH
        status = "200 OK" if found else "404 Not Found"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [b"healthy\n" if found else f"See {METRICS_PATH}\n".encode()]

    return respond


class _QuietHandler(WSGIRequestHandler):
    """Logs no request: there are thousands a day, all alike."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name of the base class
        pass
