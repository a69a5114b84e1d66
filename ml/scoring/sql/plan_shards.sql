-- Adds one row per shard of the run's manifest.
INSERT INTO nightscore.shard (run_id, number, images)
SELECT run_id, shard, count(*)
FROM nightscore.manifest
WHERE run_id = :run_id
GROUP BY run_id, shard
ON CONFLICT (run_id, number) DO NOTHING
