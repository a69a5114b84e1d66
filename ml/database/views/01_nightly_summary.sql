CREATE OR REPLACE VIEW reporting.nightly_summary AS
SELECT
    run.stream,
    run.night,
    run.run_id,
    run.status,
    run.discovered,
    run.scored,
    run.rejected,
    run.anomalies,
    run.anomalies::double precision / nullif(run.scored, 0) AS anomaly_rate,
    work.images / nullif(work.seconds, 0) AS images_per_second,
    run.opened_at AS started_at,
    run.finished_at,
    versions.versions,
    run.synthetic,
    run.error,
    run.report_uri,
    run.to_review,
    extract(epoch FROM run.finished_at - run.opened_at)::double precision AS seconds,
    work.engine_images / nullif(work.engine_seconds, 0) AS engine_images_per_second,
    work.devices
FROM nightscore.scoring_run AS run
LEFT JOIN LATERAL (
    SELECT
        sum(shard.images)::double precision AS images,
        extract(epoch FROM max(shard.finished_at) - min(shard.started_at))::double precision AS seconds,
        sum(shard.engine_images)::double precision AS engine_images,
        sum(shard.engine_seconds) AS engine_seconds,
        string_agg(DISTINCT shard.device, ', ' ORDER BY shard.device) AS devices
    FROM nightscore.shard
    WHERE shard.run_id = run.run_id AND shard.finished_at IS NOT NULL
) AS work ON true
LEFT JOIN LATERAL (
    SELECT string_agg(pinned.model || '/' || pinned.version, ', ' ORDER BY pinned.model) AS versions
    FROM nightscore.scoring_run_model AS pinned
    WHERE pinned.run_id = run.run_id
) AS versions ON true;

COMMENT ON VIEW reporting.nightly_summary IS 'One row per scoring run, which is one attempt at a night of a stream.';
COMMENT ON COLUMN reporting.nightly_summary.stream IS 'The stream, as nightscore.yaml names it.';
COMMENT ON COLUMN reporting.nightly_summary.night IS 'The night of the run (UTC date). Late images of earlier nights count in this run, and have their own night in the other views.';
COMMENT ON COLUMN reporting.nightly_summary.run_id IS 'Identifier of the run.';
COMMENT ON COLUMN reporting.nightly_summary.status IS 'open while it runs, then finished or failed. The results of a failed run are kept.';
COMMENT ON COLUMN reporting.nightly_summary.discovered IS 'New images found by the run. For a finished run it is scored + rejected.';
COMMENT ON COLUMN reporting.nightly_summary.scored IS 'Images scored by every version of the run.';
COMMENT ON COLUMN reporting.nightly_summary.rejected IS 'Images that could not be scored; reporting.rejected_images has the reasons.';
COMMENT ON COLUMN reporting.nightly_summary.anomalies IS 'Images flagged by at least one anomaly model of the run.';
COMMENT ON COLUMN reporting.nightly_summary.anomaly_rate IS 'anomalies / scored, from 0 to 1; null when nothing was scored.';
COMMENT ON COLUMN reporting.nightly_summary.images_per_second IS 'Images of the finished shards per second, from the start of the first shard to the end of the last: with the time to load programs, to store results, and between shards.';
COMMENT ON COLUMN reporting.nightly_summary.started_at IS 'When the run was opened and its versions were pinned.';
COMMENT ON COLUMN reporting.nightly_summary.finished_at IS 'When the run was reconciled; null while it is open.';
COMMENT ON COLUMN reporting.nightly_summary.versions IS 'The model versions pinned when the run was opened, as MODEL/VERSION.';
COMMENT ON COLUMN reporting.nightly_summary.synthetic IS 'True when an image or a model of the run comes from the built-in synthetic sample data.';
COMMENT ON COLUMN reporting.nightly_summary.error IS 'Why the run failed; null otherwise.';
COMMENT ON COLUMN reporting.nightly_summary.report_uri IS 'The HTML report in S3; Airflow shows it under Nightscore > Reports. reporting.maintenance says of which nights the reports were deleted.';
COMMENT ON COLUMN reporting.nightly_summary.to_review IS 'Images marked for review by at least one model of the run; null for an open run, and for runs from before there were such marks.';
COMMENT ON COLUMN reporting.nightly_summary.seconds IS 'Seconds from when the run was opened until it was reconciled; null while it is open.';
COMMENT ON COLUMN reporting.nightly_summary.engine_images_per_second IS 'Throughput of one worker''s engine: images per second from the request of a shard''s first image to the result of its last image, without the time to load programs and to store results. Null when nothing was scored, and for older runs.';
COMMENT ON COLUMN reporting.nightly_summary.devices IS 'What has scored its images: cpu, or the names and UUIDs of GPUs, separated by commas. Null when nothing was scored, and for older runs.';
