"""Buttons on Airflow's task pages that lead to what a task has made."""

from typing import Any
from urllib.parse import quote, urlparse

from airflow.sdk import BaseOperatorLink, conf

REPORTS_PATH = "/nightscore/reports"


def base_path() -> str:
    """Return the path below which Airflow is served; empty when it is served at the root."""
    return urlparse(conf.get("api", "base_url", fallback="/")).path.rstrip("/")


def _return_value(task_instance: Any, task_id: str) -> Any:
    """What a task of the same DAG run returned; None unless it has succeeded."""
    return task_instance.xcom_pull(task_ids=task_id, key="return_value")


class ReportLink(BaseOperatorLink):
    """From the task `report` to the page of its scoring run."""

    name = "Nightly report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address of the report; empty when no scoring run was opened."""
        run_id = _return_value(ti_key, "open_run")
        if not run_id:
            return ""
        return f"{base_path()}{REPORTS_PATH}/{quote(run_id)}"


class VersionLink(BaseOperatorLink):
    """From the task `register` to the version's page in MLflow."""

    name = "MLflow version"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address of the version; empty when none was registered."""
        from ml.registry.versions import ui_url

        registered = _return_value(ti_key, ti_key.task_id)
        return ui_url(registered["model"], registered["version"]) if registered else ""
