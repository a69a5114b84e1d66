-- An attempt that had nothing to score keeps the rate of the attempt that scored the images.
UPDATE nightscore.shard
SET finished_at = clock_timestamp(),
    error = NULL,
    engine_images = CASE WHEN :images > 0 THEN :images ELSE engine_images END,
    engine_seconds = CASE WHEN :images > 0 THEN :seconds ELSE engine_seconds END
WHERE run_id = :run_id AND number = :shard
