SELECT number, images
FROM nightscore.shard
WHERE run_id = :run_id AND finished_at IS NULL
ORDER BY number
