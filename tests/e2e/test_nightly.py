"""The whole system: Airflow's scheduler runs both kinds of DAG on small sample data.

One stack is started on free ports in a temporary folder; the tests of this file follow one another
on it, as days do, and those of test_secrets.py follow them.
"""

import json
import re
import shutil

import httpx

from tests.support.command import NIGHT, PRINTED, nightscore, query


def test_both_streams_are_scored_and_every_image_is_accounted_for(home):
    summaries = {row["stream"]: row for row in json.loads((home / "summary.json").read_text())}
    assert set(summaries) == {"cifar10", "spill"}
    for row in summaries.values():
        assert row["status"] == "finished"
        assert row["discovered"] == row["scored"] + row["rejected"] > 0
        assert row["synthetic"] is True
    assert summaries["spill"]["rejected"] == 3
    assert summaries["spill"]["anomalies"] > 0


def test_the_tables_hold_what_the_summary_says(home):
    stored = query(
        home,
        "SELECT s.stream, s.scored, s.rejected, s.anomalies,"
        " (SELECT count(*) FROM reporting.predictions p WHERE p.run_id = s.run_id) AS predictions,"
        " (SELECT count(*) FROM reporting.rejected_images r WHERE r.run_id = s.run_id) AS reasons,"
        " (SELECT count(*) FROM reporting.anomalies a WHERE a.stream = s.stream) AS flagged"
        " FROM reporting.nightly_summary s",
    )
    for row in stored:
        assert (row["scored"], row["rejected"]) == (row["predictions"], row["reasons"])
        assert row["anomalies"] == row["flagged"]
    reasons = query(home, "SELECT reason FROM reporting.rejected_images ORDER BY reason")
    assert [row["reason"] for row in reasons] == ["empty", "not_an_image", "truncated"]


def test_the_models_are_good_enough_to_be_believed(home):
    versions = {r["model"]: r for r in query(home, "SELECT * FROM reporting.model_versions")}
    assert versions["cifar10-classifier"]["alias"] == "challenger, champion" or (
        versions["cifar10-classifier"]["alias"] == "champion, challenger"
    )
    assert versions["cifar10-classifier"]["metrics"]["accuracy"] > 0.5
    assert versions["spill-anomaly"]["metrics"]["auroc"] > 0.8
    assert all(row["gate_passed"] and row["synthetic"] for row in versions.values())


def test_scoring_the_night_again_changes_nothing(home):
    checksum = (
        "SELECT count(*) AS n, md5(string_agg(p::text, '' ORDER BY p::text)) AS sum"
        " FROM reporting.predictions p"
    )
    before = query(home, checksum)
    again = json.loads(nightscore("score", "spill", "--date", NIGHT, "--json", home=home))
    assert (again["discovered"], again["scored"]) == (0, 0)
    assert query(home, checksum) == before


def _on_stderr(name: str) -> str:
    text = PRINTED[f"the output of {name}"].decode()
    return "\n".join(line for line in text.splitlines() if not line.startswith(("[{", "{")))


def test_what_a_run_says_is_short_and_without_the_chatter_of_libraries(home):
    stderr = _on_stderr(f"run --date {NIGHT} --json")
    for line in stderr.splitlines():
        assert re.match(r"\d:\d\d:\d\d  \S", line), line
        assert len(line) <= 100, line
    for chatter in ("INFO", "WARN", "warning", "Retrying", "mlflow.", "Traceback", "urllib3"):
        assert chatter not in stderr
    trained = "retrain_cifar10-classifier: done in"
    for step in ("data set spill: 1,6", trained, "score_cifar10: done in"):
        assert step in stderr


def test_a_second_run_trains_nothing_and_finds_nothing_new(home, airflow):
    printed = nightscore("run", "--date", NIGHT, home=home)
    # The logins are printed for people, on purpose, and only there (test_secrets.py).
    name = f"the output of run --date {NIGHT}"
    before, _, logins = PRINTED[name].decode().partition("\nLog in\n")
    PRINTED[name] = (before + logins.partition("\n\n")[2]).encode()
    newest = query(
        home,
        "SELECT DISTINCT ON (stream) stream, status, discovered, scored, rejected, report_uri"
        " FROM reporting.nightly_summary ORDER BY stream, started_at DESC",
    )
    assert [row["stream"] for row in newest] == ["cifar10", "spill"]
    for row in newest:
        assert (row["status"], row["discovered"]) == ("finished", 0)
        assert (row["scored"], row["rejected"]) == (0, 0)
        assert row["report_uri"]
    versions = query(home, "SELECT max(version) AS newest FROM reporting.model_versions")
    assert versions == [{"newest": 1}]
    # The state folder may have any name.
    assert all(len(line) <= 100 for line in printed.splitlines() if str(home) not in line)
    addresses = re.findall(r"^  (report of \w+|DAG run|version) +(http\S+)$", printed, re.MULTILINE)
    assert [label for label, _ in addresses] == [
        "report of cifar10", "report of spill", "DAG run", "DAG run", "version", "version",
    ]  # fmt: skip
    mlflow = re.search(r"^  MLflow +http\S+ +user (\S+), password (\S+)$", printed, re.MULTILINE)
    for label, address in addresses:
        if label == "version":
            answer = httpx.get(address, auth=mlflow.groups())
        else:
            answer = airflow.get(address)
        assert answer.status_code == 200, address
        assert "text/html" in answer.headers["content-type"]


def test_ten_more_images_of_which_three_are_broken(home, tmp_path):
    from ml.data import samples

    written = samples.write(tmp_path / "samples")
    night = tmp_path / "more"
    night.mkdir()
    good = sorted((written.datasets["spill"] / "train" / "normal").iterdir())[:7]
    for index, path in enumerate(good):
        shutil.copy(path, night / f"synthetic-more-{index}.jpg")
    (night / "synthetic-more-empty.jpg").write_bytes(b"")
    (night / "synthetic-more-text.jpg").write_text("not an image")
    (night / "synthetic-more-cut.jpg").write_bytes(good[0].read_bytes()[:400])
    nightscore("ingest", str(night), "--stream", "spill", "--date", NIGHT, home=home)
    counts = json.loads(nightscore("score", "spill", "--date", NIGHT, "--json", home=home))
    assert (counts["discovered"], counts["scored"], counts["rejected"]) == (10, 7, 3)


def test_retraining_compares_with_the_champion_and_a_rollback_is_used(home):
    nightscore("train", "spill-anomaly", "--verbose", home=home)
    assert "mlflow.system_metrics" in _on_stderr("train spill-anomaly --verbose")
    second = query(
        home,
        "SELECT version, alias, gate_reason FROM reporting.model_versions"
        " WHERE model = 'spill-anomaly' AND version = 2",
    )[0]
    assert "version 1" in second["gate_reason"]
    if "champion" not in second["alias"]:
        nightscore("promote", "spill-anomaly", "2", home=home)
    nightscore("rollback", "spill-anomaly", home=home)
    counts = json.loads(nightscore("score", "spill", "--date", "2026-01-16", "--json", home=home))
    versions = query(
        home,
        f"SELECT versions FROM reporting.nightly_summary WHERE run_id = '{counts['run_id']}'",
    )
    assert versions == [{"versions": "spill-anomaly/1"}]


def test_unpausing_a_dag_starts_no_night_of_the_past(home):
    nights = query(home, "SELECT DISTINCT night FROM reporting.nightly_summary ORDER BY night")
    assert [row["night"] for row in nights] == [NIGHT, "2026-01-16"]


def _first_run(airflow, dag_id: str) -> str:
    runs = airflow.get(f"/api/v2/dags/{dag_id}/dagRuns").json()["dag_runs"]
    return sorted(runs, key=lambda run: run["run_after"])[0]["dag_run_id"]


def test_a_mapped_task_scores_a_group_of_shards_and_shows_which(home, airflow):
    run = _first_run(airflow, "score_spill")
    answer = airflow.get(f"/api/v2/dags/score_spill/dagRuns/{run}/taskInstances")
    tasks = [task for task in answer.json()["task_instances"] if task["task_id"] == "score_shards"]
    labels = {task["map_index"]: task["rendered_map_index"] for task in tasks}
    assert labels == {0: "shard 0", 1: "shards 1 to 2", 2: "shards 3 to 4", 3: "shards 5 to 6"}
    assert {task["state"] for task in tasks} == {"success"}


def test_airflow_links_to_the_report_and_serves_it_to_whoever_is_logged_in(home, airflow):
    run = _first_run(airflow, "score_spill")
    links = airflow.get(f"/api/v2/dags/score_spill/dagRuns/{run}/taskInstances/report/links")
    address = links.json()["extra_links"]["Nightly report"]
    page = airflow.get(address)
    assert page.status_code == 200
    assert "Synthetic sample data" in page.text
    assert re.search(r'<img src="data:image/jpeg;base64,[^"]+" alt="heat map of ', page.text)
    assert "nightscore" in airflow.get("/nightscore/reports/").text.lower()
    elsewhere = airflow.base_url.join(address)
    assert httpx.get(elsewhere).status_code == 401
    login = httpx.get(elsewhere, headers={"Accept": "text/html"}, follow_redirects=True)
    assert login.url.path.rstrip("/") == "/auth/login"
    assert login.url.params["next"] == elsewhere.path


def test_airflow_links_to_the_version_in_mlflow(home, airflow):
    run = _first_run(airflow, "retrain_spill-anomaly")
    links = airflow.get(
        f"/api/v2/dags/retrain_spill-anomaly/dagRuns/{run}/taskInstances/register/links"
    )
    assert links.json()["extra_links"]["MLflow version"].endswith(
        "/models/spill-anomaly/versions/1"
    )


def test_airflow_reports_no_import_errors_and_one_version_of_each_dag(home, airflow):
    assert airflow.get("/api/v2/importErrors").json()["total_entries"] == 0
    for dag_id in ("score_spill", "retrain_spill-anomaly"):
        versions = airflow.get(f"/api/v2/dags/{dag_id}/dagVersions").json()
        assert versions["total_entries"] == 1


def test_doctor_finds_nothing_wrong(home):
    checks = json.loads(nightscore("doctor", "--json", home=home))
    assert checks
    assert all(check["ok"] for check in checks)
