-- Read from the sums of the runs (migration 0010). A condition on the night or the stream reaches all
-- three, since both are grouped by.
CREATE OR REPLACE VIEW reporting.camera_summary AS
SELECT
    summed.stream,
    summed.night,
    camera.camera,
    nullif(camera.line, '') AS line,
    nullif(camera.product, '') AS product,
    summed.model,
    summed.version,
    summed.scored::bigint AS scored,
    summed.rejected::bigint AS rejected,
    summed.flagged::bigint AS anomalies,
    (summed.flagged / nullif(summed.scored, 0))::double precision AS anomaly_rate,
    summed.review::bigint AS to_review,
    drift.psi,
    drift.psi > 0.25 AND summed.scored >= 100 AS alarm
FROM (
    SELECT
        stream, night, camera_id, model, version,
        sum(scored) AS scored,
        sum(flagged) AS flagged,
        sum(review) AS review,
        sum(rejected) AS rejected,
        jsonb_object_agg(bin, in_bin) FILTER (WHERE bin IS NOT NULL) AS bins
    FROM (
        SELECT
            run.stream, total.night, total.camera_id, total.model, total.version, total.bin,
            sum(total.scored) AS scored,
            sum(total.flagged) AS flagged,
            sum(total.review) AS review,
            sum(total.rejected) AS rejected,
            sum(total.in_bin) AS in_bin
        FROM (
            SELECT
                run_id, night, camera_id, model, version, NULL::integer AS bin,
                images AS scored, flagged, review, 0 AS rejected, 0 AS in_bin
            FROM nightscore.class_sum
            UNION ALL
            SELECT run_id, night, camera_id, model, version, NULL, 0, 0, 0, images, 0
            FROM nightscore.rejection_sum
            UNION ALL
            SELECT run_id, night, camera_id, model, version, bin, 0, 0, 0, 0, images
            FROM nightscore.score_sum
        ) AS total
        JOIN nightscore.scoring_run AS run USING (run_id)
        GROUP BY run.stream, total.night, total.camera_id, total.model, total.version, total.bin
    ) AS by_bin
    GROUP BY stream, night, camera_id, model, version
) AS summed
LEFT JOIN nightscore.camera USING (camera_id)
LEFT JOIN nightscore.model_version AS version USING (model, version)
-- As in reporting.score_drift.
CROSS JOIN LATERAL (
    SELECT sum((actual - expected) * ln(actual / expected))::double precision AS psi
    FROM unnest(version.reference_shares) WITH ORDINALITY AS reference (share, number)
    CROSS JOIN LATERAL (
        SELECT
            greatest(reference.share, 1e-6) AS expected,
            (coalesce((summed.bins ->> (reference.number - 1)::text)::numeric, 0) + 0.5)
                / (summed.scored + 0.5 * cardinality(version.reference_shares)) AS actual
        WHERE summed.scored > 0
    ) AS bin
) AS drift
WHERE summed.scored > 0 OR summed.rejected > 0;

COMMENT ON VIEW reporting.camera_summary IS 'One row per night, camera and model version: what the version made of the images of one camera. Of a stream without a pattern, all images are of one camera, null.';
COMMENT ON COLUMN reporting.camera_summary.stream IS 'The stream.';
COMMENT ON COLUMN reporting.camera_summary.night IS 'The night of the images.';
COMMENT ON COLUMN reporting.camera_summary.camera IS 'The camera, which the stream''s pattern takes out of the key; null without a pattern, or when the key does not match.';
COMMENT ON COLUMN reporting.camera_summary.line IS 'The line, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.camera_summary.product IS 'The product, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.camera_summary.model IS 'The registered model.';
COMMENT ON COLUMN reporting.camera_summary.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.camera_summary.scored IS 'Images that the version scored.';
COMMENT ON COLUMN reporting.camera_summary.rejected IS 'Images that the version could not score.';
COMMENT ON COLUMN reporting.camera_summary.anomalies IS 'Images that the version flagged.';
COMMENT ON COLUMN reporting.camera_summary.anomaly_rate IS 'anomalies / scored, from 0 to 1; null when nothing was scored.';
COMMENT ON COLUMN reporting.camera_summary.to_review IS 'Images that the version marked for review.';
COMMENT ON COLUMN reporting.camera_summary.psi IS 'Population stability index of the scores against those of the held-out images, as in reporting.score_drift; null when nothing was scored.';
COMMENT ON COLUMN reporting.camera_summary.alarm IS 'True when psi is above 0.25 and the version scored at least 100 images of the camera.';
