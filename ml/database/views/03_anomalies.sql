CREATE OR REPLACE VIEW reporting.anomalies AS
SELECT
    image.stream,
    image.night,
    image.uri AS image_uri,
    prediction.model,
    prediction.version,
    prediction.score,
    prediction.threshold,
    prediction.heatmap_uri,
    prediction.scored_at,
    camera.camera,
    nullif(camera.line, '') AS line,
    nullif(camera.product, '') AS product,
    prediction.night AS result_night
FROM nightscore.prediction
JOIN nightscore.image USING (night, image_id)
LEFT JOIN nightscore.camera USING (camera_id)
WHERE prediction.flagged;

COMMENT ON VIEW reporting.anomalies IS 'One row per image and version of an anomaly model that flagged it.';
COMMENT ON COLUMN reporting.anomalies.stream IS 'The stream of the image.';
COMMENT ON COLUMN reporting.anomalies.night IS 'The night of the image: the date in its key, dt=YYYY-MM-DD.';
COMMENT ON COLUMN reporting.anomalies.image_uri IS 'The image in S3.';
COMMENT ON COLUMN reporting.anomalies.model IS 'The registered model.';
COMMENT ON COLUMN reporting.anomalies.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.anomalies.score IS 'Anomaly score, larger is more anomalous.';
COMMENT ON COLUMN reporting.anomalies.threshold IS 'The version''s threshold that score reached.';
COMMENT ON COLUMN reporting.anomalies.heatmap_uri IS 'A JPEG in S3: the image at the model''s input size, with the heat map drawn over it. reporting.maintenance says of which nights the heat maps were deleted.';
COMMENT ON COLUMN reporting.anomalies.scored_at IS 'When the result was stored.';
COMMENT ON COLUMN reporting.anomalies.camera IS 'The camera, which the stream''s pattern takes out of the key; null without a pattern, or when the key does not match.';
COMMENT ON COLUMN reporting.anomalies.line IS 'The line, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.anomalies.product IS 'The product, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.anomalies.result_night IS 'The same as night. A range of nights must name both for Postgres to read these nights only, as reporting.anomalies(first_night, last_night) does.';

-- The view, for a range of nights, which it names for each table: Postgres puts the query in the place
-- of the call and plans to read the partitions of these nights only.
CREATE OR REPLACE FUNCTION reporting.anomalies(first_night date, last_night date)
RETURNS SETOF reporting.anomalies
LANGUAGE sql STABLE AS $$
    SELECT *
    FROM reporting.anomalies
    WHERE night BETWEEN first_night AND last_night
        AND result_night BETWEEN first_night AND last_night
$$;
COMMENT ON FUNCTION reporting.anomalies(date, date) IS 'Anomalies of the nights from first_night to last_night.';
