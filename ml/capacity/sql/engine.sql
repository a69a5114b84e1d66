-- What the newest finished runs of a stream took on each kind of device. `overhead_seconds` is the time
-- of the shards outside of the engine: start, program, merge. A shard that was tried again is left out,
-- as its time has the failure in it.
WITH newest AS (
    SELECT run_id
    FROM nightscore.scoring_run
    WHERE stream = :stream AND status = 'finished' AND discovered > 0
    ORDER BY night DESC, opened_at DESC
    LIMIT :most
)
SELECT
    CASE WHEN shard.device = 'cpu' THEN 'cpu' ELSE 'gpu' END AS kind,
    count(*) AS shards,
    sum(shard.engine_images) AS images,
    sum(shard.engine_seconds) AS engine_seconds,
    sum(extract(epoch FROM shard.finished_at - shard.started_at) - shard.engine_seconds)
        ::double precision AS overhead_seconds
FROM nightscore.shard
JOIN newest USING (run_id)
WHERE shard.finished_at IS NOT NULL AND shard.engine_seconds > 0 AND shard.attempts = 1
GROUP BY kind
