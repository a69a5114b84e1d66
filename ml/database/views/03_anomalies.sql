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
    prediction.scored_at
FROM nightscore.prediction
JOIN nightscore.image USING (night, image_id)
WHERE prediction.flagged;

COMMENT ON VIEW reporting.anomalies IS 'One row per image and version of an anomaly model that flagged it.';
COMMENT ON COLUMN reporting.anomalies.stream IS 'The stream of the image.';
COMMENT ON COLUMN reporting.anomalies.night IS 'The night of the image: the date in its key, dt=YYYY-MM-DD.';
COMMENT ON COLUMN reporting.anomalies.image_uri IS 'The image in S3.';
COMMENT ON COLUMN reporting.anomalies.model IS 'The registered model.';
COMMENT ON COLUMN reporting.anomalies.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.anomalies.score IS 'Anomaly score, larger is more anomalous.';
COMMENT ON COLUMN reporting.anomalies.threshold IS 'The version''s threshold that score reached.';
COMMENT ON COLUMN reporting.anomalies.heatmap_uri IS 'A JPEG in S3: the image at the model''s input size, with the heat map drawn over it.';
COMMENT ON COLUMN reporting.anomalies.scored_at IS 'When the result was stored.';
