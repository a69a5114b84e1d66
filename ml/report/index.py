"""The list of the newest scoring runs, with a link to the report of each."""

from ml.database.connection import rows, transaction
from ml.report.rendering import render_template

MAX_RUNS = 200


def render(link_base: str) -> str:
    """Return the list as HTML; the address of a report is `LINK_BASE/RUN_ID`."""
    with transaction() as session:
        runs = rows(session, "report/sql/newest", most=MAX_RUNS)
    return render_template("index.html", runs=runs, link_base=link_base)
