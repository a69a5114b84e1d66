-- Adds one row per shard of the run's manifest, with the nights of its images.
INSERT INTO nightscore.shard (run_id, number, images, first_night, last_night)
SELECT run_id, shard, count(*), min(night), max(night)
FROM nightscore.manifest
WHERE run_id = :run_id AND night = ANY (:nights)
GROUP BY run_id, shard
ON CONFLICT (run_id, number) DO NOTHING
