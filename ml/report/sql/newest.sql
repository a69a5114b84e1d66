SELECT * FROM reporting.nightly_summary ORDER BY started_at DESC LIMIT :most
