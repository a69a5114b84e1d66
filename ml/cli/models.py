"""Commands: models."""

import typer

app = typer.Typer()
