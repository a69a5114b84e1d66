-- The named runs with their rates; status has a row for each status there is.
SELECT
    run.stream,
    extract(epoch FROM run.started_at) AS started,
    run.images_per_second,
    run.engine_images_per_second,
    run.anomalies,
    run.to_review,
    status.status,
    CAST(run.status = status.status AS integer) AS is_status
FROM reporting.nightly_summary AS run
CROSS JOIN (VALUES ('open'), ('finished'), ('failed')) AS status (status)
WHERE run.run_id = ANY (:run_ids)
