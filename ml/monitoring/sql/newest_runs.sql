-- The newest run of each stream.
SELECT DISTINCT ON (stream) stream, night, run_id
FROM reporting.nightly_summary
WHERE night > current_date - CAST(:nights AS integer)
ORDER BY stream, started_at DESC
