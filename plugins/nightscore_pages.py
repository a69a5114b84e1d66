"""The page "Nightscore" in Airflow: the newest scoring runs, and the report of each.

Reports lie in S3, where a browser cannot sign requests. These pages serve them to users of Airflow:
to each those of the streams whose DAG `score_STREAM` the user may read. They use the analyst's
login only.
"""

from threading import Lock
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from nightscore_connections import ANALYST, S3, export_connections
from nightscore_links import REPORTS_PATH, ReportLink, VersionLink, base_path


def _require_login() -> Any:
    from airflow.api_fastapi.core_api.security import get_user

    return get_user


def _readable_streams(streams: set[str], user: Any) -> set[str]:
    """Those of the streams whose DAG `score_STREAM` the user may read."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.models.dag import DagModel

    dag_ids = {f"score_{stream}": stream for stream in streams}
    auth_manager = get_auth_manager()
    # With Airflow's teams, a user has access by the team of a DAG.
    dags_of_team: dict[str | None, set[str]] = {}
    teams = DagModel.get_dag_id_to_team_name_mapping(list(dag_ids))
    for dag_id in dag_ids:
        dags_of_team.setdefault(teams.get(dag_id), set()).add(dag_id)
    return {
        dag_ids[dag_id]
        for team, ids in dags_of_team.items()
        for dag_id in auth_manager.filter_authorized_dag_ids(
            dag_ids=ids, user=user, method="GET", team_name=team
        )
    }


_connections_lock = Lock()


def _use_connections() -> None:
    """Let `ml` use the connections of the API server, as soon as they are defined."""
    from ml.settings import settings
    from ml.storage.object_store import object_store

    with _connections_lock:
        if export_connections((ANALYST, S3)):
            settings.cache_clear()
            object_store.cache_clear()


# Nightscore writes the report, but anyone may have chosen the names of the images that it shows.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}

# No OpenAPI pages: FastAPI shows them without a login, and they load scripts from other servers.
_LOGGED_IN = Depends(_require_login())
app = FastAPI(title="Nightscore", dependencies=[_LOGGED_IN], openapi_url=None)


@app.exception_handler(401)
async def redirect_to_login(request: Request, error: HTTPException) -> Response:
    """Send a browser to Airflow's login, and from there back to the page."""
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    query = urlencode({"next": request.url.path})
    return RedirectResponse(f"{base_path()}/api/v2/auth/login?{query}")


@app.get("/", response_class=HTMLResponse)
def list_runs(user: Any = _LOGGED_IN) -> HTMLResponse:
    """Show the newest scoring runs that the user may see, with links to their reports."""
    from ml.report import index

    _use_connections()
    page = index.render(REPORTS_PATH, lambda streams: _readable_streams(streams, user))
    return HTMLResponse(page, headers=_HEADERS)


@app.get("/{run_id}", response_class=HTMLResponse)
def show_report(run_id: UUID, user: Any = _LOGGED_IN) -> HTMLResponse:
    """Show the report of a scoring run; 404 does not say whether a report exists.

    A report that retention has deleted is answered with 410 and the date.
    """
    from ml.report import nightly

    _use_connections()
    try:
        page = nightly.read(run_id, lambda stream: bool(_readable_streams({stream}, user)))
        return HTMLResponse(page, headers=_HEADERS)
    except nightly.DeletedReportError as error:
        raise HTTPException(410, str(error)) from None
    except FileNotFoundError:
        raise HTTPException(404, f"The scoring run {run_id} has no report.") from None


class NightscorePlugin(AirflowPlugin):
    """Registers the pages, their entry in the navigation, and the links."""

    name = "nightscore"
    fastapi_apps = [{"app": app, "url_prefix": REPORTS_PATH, "name": "Nightscore"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Nightscore",
            "href": f"{REPORTS_PATH}/",
            "destination": "nav",
            "url_route": "nightscore",
        }
    ]
    operator_extra_links = [ReportLink(), VersionLink()]  # noqa: RUF012
