"""Metrics for Prometheus: `metrics` prints them, `metrics serve` serves them."""

import signal
import sys
from typing import Annotated

import typer

from ml.cli.console import print_message
from ml.errors import ServiceError

app = typer.Typer()
metrics = typer.Typer(help="Metrics of the nights for Prometheus: print them, or serve them.")
app.add_typer(metrics, name="metrics")

Timeout = Annotated[
    float, typer.Option(min=1, help="Seconds to connect to Postgres, and for all queries.")
]


@metrics.callback(invoke_without_command=True)
def print_once(context: typer.Context, timeout: Timeout = 5) -> None:
    """Print the metrics as they are now, as the read-only analyst."""
    if context.invoked_subcommand is not None:
        return
    from prometheus_client import generate_latest

    from ml.monitoring.collector import registry

    text = generate_latest(registry(timeout)).decode()
    typer.echo(text, nl=False)
    if "\nnightscore_up 1.0\n" not in text:
        raise ServiceError("Postgres gives no metrics.", "`nightscore doctor` says what is wrong.")


@metrics.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 9108,
    timeout: Timeout = 5,
) -> None:
    """Serve the metrics at /metrics until the process is ended; /-/healthy says that it runs."""
    from ml.monitoring.collector import registry
    from ml.monitoring.server import METRICS_PATH, server

    # The first process of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with server(registry(timeout), host, port) as endpoint:
        print_message(f"Metrics: http://{host}:{endpoint.server_port}{METRICS_PATH}")
        endpoint.serve_forever()
