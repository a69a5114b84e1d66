-- The run's stored report; no row when it has none.
SELECT stream, night, report_uri
FROM reporting.nightly_summary
WHERE run_id = :run_id AND report_uri IS NOT NULL
