"""The list of the newest scoring runs, with a link to the report of each."""

from collections.abc import Callable

from ml.database.connection import analyst_engine, rows
from ml.report.rendering import render_template

MAX_RUNS = 200


def render(
    link_base: str, readable: Callable[[set[str]], set[str]] = lambda streams: streams
) -> str:
    """Return the list as HTML; the analyst's login is enough.

    Args:
        link_base: the address of a report is `LINK_BASE/RUN_ID`.
        readable: returns those of some streams whose runs the reader may see.
    """
    with analyst_engine().connect() as connection:
        streams = {row["stream"] for row in rows(connection, "report/sql/streams")}
        visible = sorted(readable(streams))
        runs = rows(connection, "report/sql/newest", streams=visible, most=MAX_RUNS)
    return render_template("index.html", runs=runs, link_base=link_base)
