-- A retry keeps the start of the first attempt, so that the run's rate includes the lost time.
UPDATE nightscore.shard
SET started_at = coalesce(started_at, clock_timestamp()),
    finished_at = NULL,
    attempts = attempts + 1
WHERE run_id = :run_id AND number = :shard
