-- The shards of the named runs.
SELECT
    stream,
    state.state,
    count(*) FILTER (WHERE shard.state = state.state) AS shards,
    sum(attempts) AS attempts,
    coalesce(sum(images) FILTER (WHERE shard.state = 'finished'), 0) AS stored_images
FROM (
    SELECT
        *,
        CASE
            WHEN finished_at IS NOT NULL THEN 'finished'
            WHEN error IS NOT NULL THEN 'failed'
            WHEN started_at IS NOT NULL THEN 'started'
            ELSE 'waiting'
        END AS state
    FROM reporting.shards
    WHERE run_id = ANY (:run_ids)
) AS shard
CROSS JOIN (VALUES ('waiting'), ('started'), ('failed'), ('finished')) AS state (state)
GROUP BY stream, state.state
