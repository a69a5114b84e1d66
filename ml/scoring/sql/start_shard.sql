-- A retry keeps the start of the first attempt, so that the run's rate includes the lost time.
-- Another process may have finished the shard in the meantime; then nothing is started.
UPDATE nightscore.shard
SET started_at = coalesce(started_at, clock_timestamp()),
    attempts = attempts + 1
WHERE run_id = :run_id AND number = :shard AND finished_at IS NULL
RETURNING true
