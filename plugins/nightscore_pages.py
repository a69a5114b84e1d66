"""The page "Nightscore" in Airflow: the newest scoring runs, and the report of each.

Reports lie in S3, where a browser cannot sign requests. These pages serve them to every user who is
logged in to Airflow.
"""

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from nightscore_links import REPORTS_PATH, ReportLink, VersionLink, base_path


def _require_login() -> Any:
    from airflow.api_fastapi.core_api.security import get_user

    return get_user


# Nightscore writes the report, but anyone may have chosen the names of the images that it shows.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}

# No OpenAPI pages: FastAPI shows them without a login, and they load scripts from other servers.
app = FastAPI(title="Nightscore", dependencies=[Depends(_require_login())], openapi_url=None)


@app.exception_handler(401)
async def redirect_to_login(request: Request, error: HTTPException) -> Response:
    """Send a browser to Airflow's login, and from there back to the page."""
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    query = urlencode({"next": request.url.path})
    return RedirectResponse(f"{base_path()}/api/v2/auth/login?{query}")


@app.get("/", response_class=HTMLResponse)
def list_runs() -> HTMLResponse:
    """Show the newest scoring runs, with links to their reports."""
    from ml.report import index

    return HTMLResponse(index.render(REPORTS_PATH), headers=_HEADERS)


@app.get("/{run_id}", response_class=HTMLResponse)
def show_report(run_id: UUID) -> HTMLResponse:
    """Show the report of a scoring run."""
    from ml.report import nightly

    try:
        return HTMLResponse(nightly.read(run_id), headers=_HEADERS)
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
