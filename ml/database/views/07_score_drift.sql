-- Population stability index (Siddiqi, Credit Risk Scorecards, 2006): the sum over the bins of
-- (actual - expected) * ln(actual / expected). Half an image is added to each bin, so that the term
-- of an empty bin is finite. By convention, an index above 0.25 means that the population has
-- shifted. With fewer than 100 images the index is too uncertain, and there is no alarm.
CREATE OR REPLACE VIEW reporting.score_drift AS
WITH counted AS (
    SELECT
        image.stream,
        prediction.night,
        prediction.model,
        prediction.version,
        width_bucket(
            coalesce(prediction.score, prediction.confidence)::double precision,
            version.reference_edges
        ) AS bin,
        count(*) AS images
    FROM nightscore.prediction
    JOIN nightscore.image USING (night, image_id)
    JOIN nightscore.model_version AS version USING (model, version)
    GROUP BY 1, 2, 3, 4, 5
),
nights AS (
    SELECT stream, night, model, version, sum(images) AS images
    FROM counted
    GROUP BY stream, night, model, version
),
shares AS (
    SELECT
        nights.stream,
        nights.night,
        nights.model,
        nights.version,
        nights.images,
        reference.share AS expected,
        (coalesce(counted.images, 0) + 0.5)
            / (nights.images + 0.5 * cardinality(version.reference_shares)) AS actual
    FROM nights
    JOIN nightscore.model_version AS version USING (model, version)
    CROSS JOIN LATERAL unnest(version.reference_shares) WITH ORDINALITY AS reference (share, bin)
    LEFT JOIN counted
        ON counted.stream = nights.stream
        AND counted.night = nights.night
        AND counted.model = nights.model
        AND counted.version = nights.version
        AND counted.bin = reference.bin - 1
),
drift AS (
    SELECT
        stream,
        night,
        model,
        version,
        images,
        sum((actual - greatest(expected, 1e-6)) * ln(actual / greatest(expected, 1e-6)))::double precision AS psi
    FROM shares
    GROUP BY stream, night, model, version, images
)
SELECT
    drift.stream,
    drift.night,
    drift.model,
    drift.version,
    'held-out images of ' || version.snapshot_uri AS reference,
    drift.psi,
    drift.psi > 0.25 AND drift.images >= 100 AS alarm,
    drift.images::bigint AS images
FROM drift
JOIN nightscore.model_version AS version USING (model, version);

COMMENT ON VIEW reporting.score_drift IS 'One row per night and model version: how much the scores differ from those of the held-out images.';
COMMENT ON COLUMN reporting.score_drift.stream IS 'The stream.';
COMMENT ON COLUMN reporting.score_drift.night IS 'The night of the images.';
COMMENT ON COLUMN reporting.score_drift.model IS 'The registered model.';
COMMENT ON COLUMN reporting.score_drift.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.score_drift.reference IS 'The images that the night is compared with.';
COMMENT ON COLUMN reporting.score_drift.psi IS 'Population stability index of the anomaly score, or of a classifier''s confidence; 0 means no difference.';
COMMENT ON COLUMN reporting.score_drift.alarm IS 'True when psi is above 0.25 and the night has at least 100 images.';
COMMENT ON COLUMN reporting.score_drift.images IS 'Images of the night that the version scored.';
