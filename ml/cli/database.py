"""Commands on the database: `migrate` and `sql`."""

from typing import Annotated, Any

import typer

from ml.cli.console import Json, err, print_json, print_table
from ml.errors import DataError

app = typer.Typer()


@app.command()
def migrate() -> None:
    """Bring the tables and the views up to date. Safe to repeat; `up` does it too."""
    from ml.database.migrate import migrate

    migrate()
    err.print("The tables and views are up to date.")


@app.command()
def sql(
    query: Annotated[
        str, typer.Argument(help='A query, e.g. "SELECT * FROM reporting.anomalies".')
    ],
    json: Json = False,
) -> None:
    """Run a query as the read-only analyst and print its rows.

    The views are in schema reporting: nightly_summary, predictions, anomalies, class_mix,
    review, rejected_images, missing_images, model_versions, score_drift, shards,
    rejection_reasons, camera_summary, camera_class_mix, camera_rejection_reasons, maintenance,
    schema_revision. Of a long history, name the nights: docs/sql.md says how.
    """
    columns, rows = _run_query(query)
    if json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    print_table(columns, rows)
    err.print(f"{len(rows)} row{'' if len(rows) == 1 else 's'}", style="dim")


def _run_query(query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The names of the columns, and the rows."""
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError, ResourceClosedError

    from ml.database.connection import analyst_engine

    try:
        with analyst_engine().connect() as connection:
            result = connection.exec_driver_sql(query, execution_options={"no_parameters": True})
            return list(result.keys()), [tuple(row) for row in result]
    except ResourceClosedError:
        raise DataError("The statement returned no rows.", "Use SELECT.") from None
    except sa.exc.OperationalError:
        raise
    except DBAPIError as error:
        raise DataError(str(error.orig).strip()) from None
