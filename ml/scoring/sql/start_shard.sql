-- A retry keeps the first attempt's start, so that the run's rate counts the time lost.
UPDATE nightscore.shard
SET started_at = coalesce(started_at, clock_timestamp()),
    finished_at = NULL,
    attempts = attempts + 1
WHERE run_id = :run_id AND number = :shard
