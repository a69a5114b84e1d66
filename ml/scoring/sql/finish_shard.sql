-- A repetition that had nothing left to score keeps the rate of the attempt that did.
UPDATE nightscore.shard
SET finished_at = clock_timestamp(),
    error = NULL,
    engine_images = CASE WHEN :images > 0 THEN :images ELSE engine_images END,
    engine_seconds = CASE WHEN :images > 0 THEN :seconds ELSE engine_seconds END
WHERE run_id = :run_id AND number = :shard
