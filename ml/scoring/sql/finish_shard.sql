-- The first of two processes that score a shard at the same time finishes it. A shard that had nothing
-- left to score has no rate and no device.
UPDATE nightscore.shard
SET finished_at = clock_timestamp(),
    error = NULL,
    engine_images = CASE WHEN :images > 0 THEN :images END,
    engine_seconds = CASE WHEN :images > 0 THEN :seconds END,
    device = CASE WHEN :images > 0 THEN CAST(:device AS text) END
WHERE run_id = :run_id AND number = :shard AND finished_at IS NULL
