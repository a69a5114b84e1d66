"""Commands: results."""

import typer

app = typer.Typer()
