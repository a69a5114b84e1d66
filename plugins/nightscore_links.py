"""Buttons on Airflow's task pages that lead to what a task made."""

from typing import Any
from urllib.parse import quote, urlparse

from airflow.sdk import BaseOperatorLink, conf

REPORTS = "/nightscore/reports"


def _returned(ti: Any, task_id: str) -> Any:
    """What a task of the run returned; None when it has not finished well."""
    return ti.xcom_pull(task_ids=task_id, key="return_value")


class ReportLink(BaseOperatorLink):
    """From the task `report` to the page of its scoring run."""

    name = "Nightly report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        run_id = _returned(ti_key, "open_run")
        if not run_id:
            return ""
        base = urlparse(conf.get("api", "base_url", fallback="/")).path.rstrip("/")
        return f"{base}{REPORTS}/{quote(run_id)}"


class VersionLink(BaseOperatorLink):
    """From the task `register` to the version's page in MLflow."""

    name = "MLflow version"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from ml.registry.versions import ui_url

        returned = _returned(ti_key, ti_key.task_id)
        return ui_url(returned["model"], returned["version"]) if returned else ""
