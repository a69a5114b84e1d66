-- What the newest finished runs of a stream came to. `outside_seconds` is the time before the first and
-- after the last shard: listing, manifest, reconciliation.
WITH newest AS (
    SELECT run_id, discovered, scored, rejected, anomalies, opened_at, finished_at
    FROM nightscore.scoring_run
    WHERE stream = :stream AND status = 'finished' AND discovered > 0
    ORDER BY night DESC, opened_at DESC
    LIMIT :most
),
shards AS (
    SELECT run_id, min(shard.started_at) AS first, max(shard.finished_at) AS last
    FROM nightscore.shard
    JOIN newest USING (run_id)
    GROUP BY run_id
)
SELECT
    count(*) AS runs,
    coalesce(sum(discovered), 0) AS images,
    coalesce(sum(rejected), 0) AS rejected,
    coalesce(sum(anomalies), 0) AS anomalies,
    coalesce(sum(extract(epoch FROM (finished_at - opened_at) - (last - first))), 0)
        ::double precision AS outside_seconds
FROM newest
JOIN shards USING (run_id)
