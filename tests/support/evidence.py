"""What the tables, the object store and the registry say after a fault: lost, duplicated,
inconsistent. It counts by its own queries, not by those that the code under test uses."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import httpx
import sqlalchemy as sa

from ml.database.connection import transaction
from ml.registry import versions
from ml.storage.object_store import object_store
from tests.support.night import Night


@dataclass
class Evidence:
    """Findings on one night. `images` were at stake; of them `lost` and `duplicated` are sets of
    (URI, model), and `inconsistent` says in words what contradicts what."""

    images: int = 0
    lost: set[tuple[str, str]] = field(default_factory=set)
    duplicated: set[tuple[str, str]] = field(default_factory=set)
    inconsistent: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.duplicated or self.inconsistent)


def query(sql: str, **values: Any) -> list[dict[str, Any]]:
    """Rows of a query, as mappings."""
    with transaction() as session:
        return [dict(row) for row in session.execute(sa.text(sql), values).mappings()]


def of_complete_night(night: Night, models: tuple[str, ...] = ("shades", "moulds")) -> Evidence:
    """The evidence after the night's last run: every image must have ended, exactly once."""
    evidence = of_night(night)
    results = _results(night)
    last = query(
        "SELECT run_id, status, versions FROM reporting.nightly_summary"
        " WHERE stream = :s AND night = :n ORDER BY started_at DESC LIMIT 1",
        s=night.stream,
        n=night.date,
    )
    if not last or last[0]["status"] != "finished":
        evidence.inconsistent.append(f"the last run is {last[0]['status'] if last else 'missing'}")
        return evidence
    pinned = dict(part.split("/") for part in last[0]["versions"].split(", "))
    for uri in night.uris:
        for model in models:
            ended = [r for r in results if r["uri"] == uri and r["model"] == model]
            if not any(str(r["version"]) == pinned[model] for r in ended):
                evidence.lost.add((uri, model))
    wrong = {r["uri"] for r in results if r["kind"] == "rejection"} ^ night.broken
    evidence.inconsistent += [f"{uri} is rejected, or is not, against its content" for uri in wrong]
    return evidence


def of_night(night: Night) -> Evidence:
    """The evidence at any moment at which no process works on the night."""
    evidence = Evidence(images=len(night.uris))
    seen: set[tuple[Any, ...]] = set()
    for row in _results(night):
        key = (row["uri"], row["etag"], row["model"], row["version"])
        if key in seen:
            evidence.duplicated.add((row["uri"], row["model"]))
        seen.add(key)
    evidence.inconsistent += [
        *_half_written(night.stream, night.date),
        *_not_pinned(night.stream, night.date),
        *_miscounted(night.stream, night.date),
        *_views(night.stream, night.date),
        *_missing_objects(night.stream, night.date),
        *_reports(night.stream, night.date),
        *champions(_pinned_models(night.stream, night.date)),
    ]
    return evidence


def _results(night: Night) -> list[dict[str, Any]]:
    return query(
        "SELECT 'prediction' AS kind, i.uri, i.etag, p.model, p.version"
        " FROM nightscore.prediction p JOIN nightscore.image i USING (night, image_id)"
        " WHERE i.stream = :s AND i.night = :n"
        " UNION ALL SELECT 'rejection', i.uri, i.etag, r.model, r.version"
        " FROM nightscore.rejection r JOIN nightscore.image i USING (night, image_id)"
        " WHERE i.stream = :s AND i.night = :n",
        s=night.stream,
        n=night.date,
    )


def _half_written(stream: str, night: date) -> list[str]:
    """Shards that are marked stored and have images without a result, or the other way round."""
    rows = query(
        "WITH result AS (SELECT night, image_id, run_id FROM nightscore.prediction"
        "   UNION ALL SELECT night, image_id, run_id FROM nightscore.rejection)"
        " SELECT run_id, number, shard.finished_at IS NOT NULL AS stored, images,"
        "  (SELECT count(*) FROM nightscore.manifest m WHERE m.run_id = shard.run_id"
        "    AND m.shard = number AND EXISTS (SELECT FROM result"
        "    WHERE result.night = m.night AND result.image_id = m.image_id)) AS settled,"
        "  (SELECT count(*) FROM nightscore.manifest m WHERE m.run_id = shard.run_id"
        "    AND m.shard = number AND EXISTS (SELECT FROM result WHERE result.night = m.night"
        "    AND result.image_id = m.image_id AND result.run_id = m.run_id)) AS own"
        " FROM nightscore.scoring_run run JOIN nightscore.shard USING (run_id)"
        " WHERE run.stream = :s AND run.night = :n",
        s=stream,
        n=night,
    )
    return [
        f"shard {row['number']} of run {row['run_id']} is half-written: {row}"
        for row in rows
        if (row["settled"] < row["images"] if row["stored"] else row["own"] > 0)
    ]


def _not_pinned(stream: str, night: date) -> list[str]:
    rows = query(
        "SELECT p.model, p.version, run.run_id FROM nightscore.prediction p"
        " JOIN nightscore.scoring_run run USING (run_id)"
        " WHERE run.stream = :s AND run.night = :n AND NOT EXISTS ("
        "   SELECT FROM nightscore.scoring_run_model pinned WHERE pinned.run_id = p.run_id"
        "   AND pinned.model = p.model AND pinned.version = p.version)",
        s=stream,
        n=night,
    )
    return [f"{r['model']}/{r['version']} was not pinned by {r['run_id']}" for r in rows]


def _miscounted(stream: str, night: date) -> list[str]:
    """Closed runs whose row in the summary is not what the tables hold of their manifest."""
    rows = query(
        "SELECT run.run_id, run.status, run.discovered, run.scored, run.rejected,"
        "  count(*) FILTER (WHERE outcome.scored) AS scored_now,"
        "  count(*) FILTER (WHERE outcome.rejected AND NOT outcome.scored) AS rejected_now,"
        "  count(m.image_id) AS listed"
        " FROM reporting.nightly_summary run LEFT JOIN nightscore.manifest m USING (run_id)"
        " LEFT JOIN LATERAL (SELECT"
        "   bool_and(EXISTS (SELECT FROM nightscore.prediction p WHERE p.night = m.night"
        "     AND p.image_id = m.image_id AND p.model = v.model AND p.version = v.version)) AS scored,"
        "   bool_or(EXISTS (SELECT FROM nightscore.rejection r WHERE r.night = m.night"
        "     AND r.image_id = m.image_id AND r.model = v.model AND r.version = v.version)) AS rejected"
        "   FROM nightscore.scoring_run_model v WHERE v.run_id = run.run_id) AS outcome ON true"
        " WHERE run.stream = :s AND run.night = :n AND run.status = 'finished'"
        " GROUP BY run.run_id, run.status, run.discovered, run.scored, run.rejected",
        s=stream,
        n=night,
    )
    findings = []
    for row in rows:
        stored = (row["discovered"], row["scored"], row["rejected"])
        counted = (row["listed"], row["scored_now"], row["rejected_now"])
        if stored != counted or stored[0] != stored[1] + stored[2]:
            findings.append(f"run {row['run_id']} says {stored}, the tables hold {counted}")
    return findings


def _views(stream: str, night: date) -> list[str]:
    """Views whose sums are not those of the table of predictions."""
    (row,) = query(
        "SELECT"
        " (SELECT count(*) FROM nightscore.prediction p JOIN nightscore.image i"
        "   USING (night, image_id) WHERE i.stream = :s AND i.night = :n) AS predictions,"
        " (SELECT count(*) FROM nightscore.prediction p JOIN nightscore.image i"
        "   USING (night, image_id) WHERE i.stream = :s AND i.night = :n AND p.flagged) AS flagged,"
        " (SELECT count(*) FROM reporting.predictions WHERE stream = :s AND night = :n) AS listed,"
        " (SELECT coalesce(sum(images), 0) FROM reporting.class_mix"
        "   WHERE stream = :s AND night = :n) AS mixed,"
        " (SELECT count(*) FROM reporting.anomalies WHERE stream = :s AND night = :n) AS anomalies",
        s=stream,
        n=night,
    )
    agree = row["predictions"] == row["listed"] == row["mixed"]
    return [] if agree and row["flagged"] == row["anomalies"] else [f"the views disagree: {row}"]


def _missing_objects(stream: str, night: date) -> list[str]:
    """Heat maps and reports that rows name and that are not in the object store."""
    rows = query(
        "SELECT heatmap_uri AS uri FROM reporting.anomalies WHERE stream = :s AND night = :n"
        " UNION ALL SELECT report_uri FROM reporting.nightly_summary"
        " WHERE stream = :s AND night = :n AND report_uri IS NOT NULL",
        s=stream,
        n=night,
    )
    return [
        f"{r['uri']} is named and not there" for r in rows if not object_store().exists(r["uri"])
    ]


def _reports(stream: str, night: date) -> list[str]:
    """Reports of finished runs whose figures are not those of the summary."""
    rows = query(
        "SELECT discovered, scored, rejected, report_uri FROM reporting.nightly_summary"
        " WHERE stream = :s AND night = :n AND status = 'finished' AND report_uri IS NOT NULL",
        s=stream,
        n=night,
    )
    findings = []
    for row in rows:
        page = object_store().get(row["report_uri"])[0].decode()
        for name, label in (("discovered", "new images"), ("scored",) * 2, ("rejected",) * 2):
            if f"<b>{row[name]:,}</b>{label}" not in page:
                findings.append(f"{row['report_uri']} does not say {row[name]} {label}")
    return findings


def _pinned_models(stream: str, night: date) -> list[str]:
    """The models of the night's runs; other tests leave models of theirs beside them."""
    rows = query(
        "SELECT DISTINCT model FROM nightscore.scoring_run_model JOIN nightscore.scoring_run"
        " USING (run_id) WHERE stream = :s AND night = :n",
        s=stream,
        n=night,
    )
    return [row["model"] for row in rows]


def champions(models: Iterable[str]) -> list[str]:
    """Models whose champion in MLflow is not the one in the tables, or not the last one audited."""
    findings = []
    for model in models:
        champion = versions.version_of_alias(model, "champion")
        mirrored = query(
            "SELECT version FROM nightscore.model_alias WHERE model = :m AND alias = 'champion'",
            m=model,
        )
        audited = query(
            "SELECT version FROM nightscore.promotion WHERE model = :m AND state = 'done'"
            " ORDER BY promotion_id DESC LIMIT 1",
            m=model,
        )
        seen = [champion, *(r["version"] for r in mirrored), *(r["version"] for r in audited)]
        if len(seen) != 3 or len(set(seen)) != 1:
            findings.append(f"the champion of {model} in MLflow, alias table and audit: {seen}")
    return findings


def missing(night: Night) -> set[str]:
    """URIs that the analyst finds missing."""
    rows = query(
        "SELECT image_uri FROM reporting.missing_images WHERE stream = :s AND night = :n",
        s=night.stream,
        n=night.date,
    )
    return {row["image_uri"] for row in rows}


def answers(address: str) -> bool:
    """Whether a server answers a request, with whatever status."""
    try:
        httpx.get(address, timeout=2)
    except httpx.HTTPError:
        return False
    return True


def wait_for(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Wait until something is so; fails the test when it does not come about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
