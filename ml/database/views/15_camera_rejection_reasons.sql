-- Read from the sums of the runs (migration 0010), which count per version.
CREATE OR REPLACE VIEW reporting.camera_rejection_reasons AS
SELECT
    run.stream,
    total.night,
    camera.camera,
    nullif(camera.line, '') AS line,
    nullif(camera.product, '') AS product,
    total.model,
    total.version,
    total.reason,
    sum(total.images)::bigint AS images
FROM nightscore.rejection_sum AS total
JOIN nightscore.scoring_run AS run USING (run_id)
LEFT JOIN nightscore.camera USING (camera_id)
GROUP BY run.stream, total.night, camera.camera, camera.line, camera.product, total.model, total.version, total.reason
HAVING sum(total.images) > 0;

COMMENT ON VIEW reporting.camera_rejection_reasons IS 'One row per night, camera, model version and reason for which the version could not score images.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.stream IS 'The stream.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.night IS 'The night of the images.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.camera IS 'The camera, which the stream''s pattern takes out of the key; null without a pattern, or when the key does not match.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.line IS 'The line, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.product IS 'The product, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.model IS 'The registered model.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.reason IS 'Reason code, as in reporting.rejected_images.';
COMMENT ON COLUMN reporting.camera_rejection_reasons.images IS 'Images that the version rejected for the reason.';
