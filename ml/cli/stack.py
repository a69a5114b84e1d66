"""Commands: stack."""

import typer

app = typer.Typer()
