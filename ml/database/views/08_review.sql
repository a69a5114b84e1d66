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
    prediction.scored_at,
    camera.camera,
    nullif(camera.line, '') AS line,
    nullif(camera.product, '') AS product,
    prediction.night AS result_night
FROM nightscore.prediction
JOIN nightscore.image USING (night, image_id)
LEFT JOIN nightscore.camera USING (camera_id)
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
COMMENT ON COLUMN reporting.review.camera IS 'The camera, which the stream''s pattern takes out of the key; null without a pattern, or when the key does not match.';
COMMENT ON COLUMN reporting.review.line IS 'The line, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.review.product IS 'The product, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.review.result_night IS 'The same as night. A range of nights must name both for Postgres to read these nights only, as reporting.review(first_night, last_night) does.';

-- The view, for a range of nights, which it names for each table: Postgres puts the query in the place
-- of the call and plans to read the partitions of these nights only.
CREATE OR REPLACE FUNCTION reporting.review(first_night date, last_night date)
RETURNS SETOF reporting.review
LANGUAGE sql STABLE AS $$
    SELECT *
    FROM reporting.review
    WHERE night BETWEEN first_night AND last_night
        AND result_night BETWEEN first_night AND last_night
$$;
COMMENT ON FUNCTION reporting.review(date, date) IS 'Images to review of the nights from first_night to last_night.';
