UPDATE nightscore.shard
SET finished_at = clock_timestamp(), error = NULL
WHERE run_id = :run_id AND number = :shard
