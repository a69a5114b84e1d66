"""Commands: steps."""

import typer

app = typer.Typer()
