CREATE OR REPLACE VIEW reporting.review AS
SELECT
    image.stream,
    image.night,
    image.uri AS image_uri,
    prediction.model,
    prediction.version,
    prediction.novelty,
    version.novelty_threshold,
    prediction.score,
    prediction.flagged,
    prediction.scored_at
FROM nightscore.prediction
JOIN nightscore.image USING (night, image_id)
LEFT JOIN nightscore.model_version AS version USING (model, version)
WHERE prediction.review;

COMMENT ON VIEW reporting.review IS 'One row per image and version that marked it for review: it differs from the normal images that the version learned from, so its score is less reliable.';
COMMENT ON COLUMN reporting.review.stream IS 'The stream of the image.';
COMMENT ON COLUMN reporting.review.night IS 'The night of the image: the date in its key, dt=YYYY-MM-DD.';
COMMENT ON COLUMN reporting.review.image_uri IS 'The image in S3.';
COMMENT ON COLUMN reporting.review.model IS 'The registered model.';
COMMENT ON COLUMN reporting.review.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.review.novelty IS 'How much the image differs from the normal training images, from 0 to 1.';
COMMENT ON COLUMN reporting.review.novelty_threshold IS 'The version''s threshold that novelty reached.';
COMMENT ON COLUMN reporting.review.score IS 'Anomaly score, larger is more anomalous.';
COMMENT ON COLUMN reporting.review.flagged IS 'True when score reached the version''s threshold: the image is in reporting.anomalies, too.';
COMMENT ON COLUMN reporting.review.scored_at IS 'When the result was stored.';
