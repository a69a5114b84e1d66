"""The dashboard, the alerts and the page about them name metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ml.monitoring.metrics import METRICS

REPOSITORY = Path(__file__).parents[3]
MONITORING = REPOSITORY / "docker" / "monitoring"
NAMES = {metric.name for metric in METRICS} | {"nightscore_up", "nightscore_scrape_seconds"}
_METRIC = re.compile(r"\bnightscore_\w+\b")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    text = (MONITORING / "nightscore.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_dashboard_keeps_its_address_and_lets_one_choose_the_data_source(dashboard):
    assert dashboard["uid"] == "nightscore"
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "stream": "query"}
    sources = [panel["datasource"] for panel in dashboard["panels"]]
    sources += [
        target["datasource"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    assert {(source["type"], source["uid"]) for source in sources} == {
        ("prometheus", "${datasource}")
    }


def test_its_panels_do_not_overlap_and_each_has_a_title(dashboard):
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["title"]
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells and max(x for x, _ in own) < 24, panel["title"]
        cells |= own
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_is_shown_or_alerts(dashboard):
    alerts = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    used = set(_METRIC.findall(json.dumps(dashboard))) | set(_METRIC.findall(alerts))
    assert used <= NAMES
    unused = {"nightscore_scrape_seconds", "nightscore_run_started_timestamp_seconds"}
    assert NAMES - used <= unused | {"nightscore_stream_newest_night_timestamp_seconds"}


def test_the_page_lists_every_metric_with_its_labels():
    page = (REPOSITORY / "docs" / "monitoring.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(nightscore_\w+)` \|([^|]*)\|", page, re.MULTILINE))
    labels = {name: tuple(re.findall(r"\w+", cell)) for name, cell in listed.items()}
    assert labels == dict.fromkeys(NAMES, ()) | {metric.name: metric.labels for metric in METRICS}
