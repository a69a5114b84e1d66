-- Population stability index (Siddiqi, Credit Risk Scorecards, 2006): the sum over the bins of
-- (actual - expected) * ln(actual / expected). Half an image is added to each bin, so that the term
-- of an empty bin is finite. By convention, an index above 0.25 means that the population has
-- shifted. With fewer than 100 images the index is too uncertain, and there is no alarm.
--
-- The histograms are sums of the runs (migration 0010). A condition on the night or the stream reaches
-- them, since both are grouped by.
CREATE OR REPLACE VIEW reporting.score_drift AS
SELECT
    scored.stream,
    scored.night,
    scored.model,
    scored.version,
    'held-out images of ' || version.snapshot_uri AS reference,
    drift.psi,
    drift.psi > 0.25 AND scored.images >= 100 AS alarm,
    scored.images::bigint AS images
FROM (
    SELECT stream, night, model, version, sum(images) AS images, jsonb_object_agg(bin, images) AS bins
    FROM (
        SELECT run.stream, total.night, total.model, total.version, total.bin, sum(total.images) AS images
        FROM nightscore.score_sum AS total
        JOIN nightscore.scoring_run AS run USING (run_id)
        GROUP BY run.stream, total.night, total.model, total.version, total.bin
    ) AS histogram
    GROUP BY stream, night, model, version
) AS scored
JOIN nightscore.model_version AS version USING (model, version)
CROSS JOIN LATERAL (
    SELECT sum((actual - expected) * ln(actual / expected))::double precision AS psi
    FROM unnest(version.reference_shares) WITH ORDINALITY AS reference (share, number)
    CROSS JOIN LATERAL (
        SELECT
            greatest(reference.share, 1e-6) AS expected,
            (coalesce((scored.bins ->> (reference.number - 1)::text)::numeric, 0) + 0.5)
                / (scored.images + 0.5 * cardinality(version.reference_shares)) AS actual
    ) AS bin
) AS drift;

COMMENT ON VIEW reporting.score_drift IS 'One row per night and model version: how much the scores differ from those of the held-out images.';
COMMENT ON COLUMN reporting.score_drift.stream IS 'The stream.';
COMMENT ON COLUMN reporting.score_drift.night IS 'The night of the images.';
COMMENT ON COLUMN reporting.score_drift.model IS 'The registered model.';
COMMENT ON COLUMN reporting.score_drift.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.score_drift.reference IS 'The images that the night is compared with.';
COMMENT ON COLUMN reporting.score_drift.psi IS 'Population stability index of the anomaly score, or of a classifier''s confidence; 0 means no difference.';
COMMENT ON COLUMN reporting.score_drift.alarm IS 'True when psi is above 0.25 and the night has at least 100 images.';
COMMENT ON COLUMN reporting.score_drift.images IS 'Images of the night that the version scored.';
