"""Commands that make services of your own ready: `prepare postgres` and `prepare buckets`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ml.cli.console import err
from ml.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlalchemy as sa

app = typer.Typer()
prepare = typer.Typer(help="Make a Postgres server or an S3 server of your own ready.")
app.add_typer(prepare, name="prepare")


@prepare.command()
def postgres(
    passwords: Annotated[
        Path, typer.Option(help="A JSON file: role to password; the databases are theirs.")
    ],
    administrator: Annotated[
        str,
        typer.Option(
            envvar="NIGHTSCORE_ADMINISTRATOR_URL",
            help="The URL of a role that may create roles and databases.",
            show_envvar=True,
        ),
    ] = "",
    password_file: Annotated[
        Path | None, typer.Option(help="The administrator's password, where the URL has none.")
    ] = None,
) -> None:
    """Create the roles and databases, and set the passwords. Safe to repeat."""
    from ml.database.roles import prepare_server

    url = _administrator_url(administrator)
    if password_file is not None:
        url = url.set(password=_read(password_file).strip())
    roles = _read_passwords(passwords)
    prepare_server(url, roles)
    err.print(f"Postgres has the roles {', '.join(sorted(roles))} and their databases.")


@prepare.command()
def buckets(
    names: Annotated[list[str], typer.Argument(help="The buckets, as in `nightscore mlflow`.")],
) -> None:
    """Create the buckets that are missing. Safe to repeat."""
    from ml.storage.buckets import ensure_bucket

    for name in names:
        ensure_bucket(name)
    err.print(f"The S3 server has the buckets {', '.join(names)}.")


def _administrator_url(text: str) -> "sa.URL":
    import sqlalchemy as sa

    try:
        return sa.make_url(text)
    except sa.exc.ArgumentError:
        raise ConfigurationError(
            "The administrator's URL cannot be read.",
            "Set NIGHTSCORE_ADMINISTRATOR_URL to postgresql+psycopg2://USER:PASSWORD@HOST/postgres.",
        ) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None


def _read_passwords(path: Path) -> dict[str, str]:
    try:
        passwords = json.loads(_read(path))
    except ValueError:
        passwords = None
    if not isinstance(passwords, dict) or not all(
        isinstance(password, str) and password for password in passwords.values()
    ):
        raise ConfigurationError(f"{path} is no JSON object of roles and their passwords.")
    return passwords
