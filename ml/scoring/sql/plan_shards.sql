-- One row a shard of the run, from its manifest.
INSERT INTO nightscore.shard (run_id, number, images)
SELECT run_id, shard, count(*)
FROM nightscore.manifest
WHERE run_id = :run_id
GROUP BY run_id, shard
ON CONFLICT (run_id, number) DO NOTHING
