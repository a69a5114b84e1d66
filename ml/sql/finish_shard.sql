UPDATE nightscore.shard
SET finished_at = clock_timestamp()
WHERE run_id = :run_id AND number = :shard
