"""Commands: scoring."""

import typer

app = typer.Typer()
