"""Commands: data."""

import typer

app = typer.Typer()
