-- The devices that scored the named runs: for which share of the time from the start of the first shard
-- to the end of the last one an engine was at work on each.
SELECT
    stream,
    device,
    sum(engine_seconds) / nullif(max(run_seconds), 0) AS engine_busy
FROM (
    SELECT
        *,
        extract(epoch FROM max(finished_at) OVER run - min(started_at) OVER run) AS run_seconds
    FROM reporting.shards
    WHERE run_id = ANY (:run_ids)
    WINDOW run AS (PARTITION BY run_id)
) AS shard
WHERE device IS NOT NULL
GROUP BY stream, device
