UPDATE nightscore.shard
SET error = :error
WHERE run_id = :run_id AND number = :shard
