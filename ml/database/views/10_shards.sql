CREATE OR REPLACE VIEW reporting.shards AS
SELECT
    run.stream,
    run.night,
    shard.run_id,
    shard.number AS shard,
    shard.images,
    shard.attempts,
    shard.error,
    shard.started_at,
    shard.finished_at,
    shard.engine_images,
    shard.engine_seconds,
    shard.device
FROM nightscore.shard
JOIN nightscore.scoring_run AS run USING (run_id);

COMMENT ON VIEW reporting.shards IS 'One row per shard of a scoring run: the images that are stored in one transaction.';
COMMENT ON COLUMN reporting.shards.stream IS 'The stream.';
COMMENT ON COLUMN reporting.shards.night IS 'The night of the run.';
COMMENT ON COLUMN reporting.shards.run_id IS 'The scoring run.';
COMMENT ON COLUMN reporting.shards.shard IS 'The number of the shard in its run, counted from 0.';
COMMENT ON COLUMN reporting.shards.images IS 'Its images.';
COMMENT ON COLUMN reporting.shards.attempts IS 'How often it was started.';
COMMENT ON COLUMN reporting.shards.error IS 'The error of its last attempt; null when it has finished, was killed or never started.';
COMMENT ON COLUMN reporting.shards.started_at IS 'When its first attempt started; null when it waits.';
COMMENT ON COLUMN reporting.shards.finished_at IS 'When its results were stored; null until then.';
COMMENT ON COLUMN reporting.shards.engine_images IS 'Images that the engine scored or rejected in the attempt that finished; null when there were none.';
COMMENT ON COLUMN reporting.shards.engine_seconds IS 'Seconds from the request of the first image to the result of the last, in the attempt that finished; null when there were none.';
COMMENT ON COLUMN reporting.shards.device IS 'What scored it: cpu, or the GPU''s name and UUID; null when there was nothing to score, and for older runs.';
