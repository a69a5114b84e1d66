"""The page "Nightscore" in Airflow: the newest scoring runs, and the report of each.

Reports lie in S3, where a browser cannot sign requests; this serves them to whoever is logged in
to Airflow.
"""

from typing import Any
from urllib.parse import urlencode, urlparse
from uuid import UUID

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import conf
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from nightscore_links import REPORTS, ReportLink, VersionLink


def _logged_in() -> Any:
    from airflow.api_fastapi.core_api.security import get_user

    return get_user


# A report is ours, but what it shows are names that anyone may have given to an image.
_NO_SCRIPTS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}

# FastAPI's own pages about the pages ask nobody to log in, and load scripts from elsewhere.
app = FastAPI(title="Nightscore", dependencies=[Depends(_logged_in())], openapi_url=None)


@app.exception_handler(401)
async def log_in(request: Request, error: HTTPException) -> Response:
    """Lead a person who opens an address to Airflow's login, and from there back to the page."""
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    base = urlparse(conf.get("api", "base_url", fallback="/")).path.rstrip("/")
    return RedirectResponse(f"{base}/api/v2/auth/login?{urlencode({'next': request.url.path})}")


@app.get("/", response_class=HTMLResponse)
def runs() -> HTMLResponse:
    """The newest scoring runs, with links to their reports."""
    from ml.report import index

    return HTMLResponse(index.render(REPORTS), headers=_NO_SCRIPTS)


@app.get("/{run_id}", response_class=HTMLResponse)
def report(run_id: UUID) -> HTMLResponse:
    """The report of a scoring run."""
    from ml.report import nightly

    try:
        return HTMLResponse(nightly.read(run_id), headers=_NO_SCRIPTS)
    except FileNotFoundError:
        raise HTTPException(404, f"The scoring run {run_id} has no report.") from None


class NightscorePlugin(AirflowPlugin):
    """Registers the page, its entry in the navigation and the links."""

    name = "nightscore"
    fastapi_apps = [{"app": app, "url_prefix": REPORTS, "name": "Nightscore"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Nightscore",
            "href": f"{REPORTS}/",
            "destination": "nav",
            "url_route": "nightscore",
        }
    ]
    operator_extra_links = [ReportLink(), VersionLink()]  # noqa: RUF012
