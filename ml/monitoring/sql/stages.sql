-- How long the stages of the named runs took: from the opening to the start of the first shard, from
-- there to the end of the last one, and until the run was reconciled.
SELECT stage.stream, time.stage, time.seconds
FROM (
    SELECT
        run.stream,
        run.started_at,
        min(shard.started_at) AS first_shard,
        max(shard.finished_at) AS last_shard,
        run.finished_at
    FROM reporting.nightly_summary AS run
    JOIN reporting.shards AS shard USING (run_id)
    WHERE run.run_id = ANY (:run_ids)
    GROUP BY run.stream, run.run_id, run.started_at, run.finished_at
) AS stage
CROSS JOIN LATERAL (
    VALUES
        ('prepare', extract(epoch FROM first_shard - started_at)),
        ('score', extract(epoch FROM last_shard - first_shard)),
        ('close', extract(epoch FROM finished_at - last_shard))
) AS time (stage, seconds)
