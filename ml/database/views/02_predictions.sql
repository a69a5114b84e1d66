CREATE OR REPLACE VIEW reporting.predictions AS
SELECT
    image.stream,
    image.night,
    image.uri AS image_uri,
    prediction.model,
    prediction.version,
    prediction.predicted_class,
    prediction.confidence,
    prediction.scored_at,
    prediction.score,
    prediction.threshold,
    prediction.flagged,
    prediction.run_id,
    prediction.novelty,
    prediction.review,
    camera.camera,
    nullif(camera.line, '') AS line,
    nullif(camera.product, '') AS product,
    prediction.night AS result_night
FROM nightscore.prediction
JOIN nightscore.image USING (night, image_id)
LEFT JOIN nightscore.camera USING (camera_id);

COMMENT ON VIEW reporting.predictions IS 'One row per image and model version that scored it.';
COMMENT ON COLUMN reporting.predictions.stream IS 'The stream of the image.';
COMMENT ON COLUMN reporting.predictions.night IS 'The night of the image: the date in its key, dt=YYYY-MM-DD.';
COMMENT ON COLUMN reporting.predictions.image_uri IS 'The image in S3.';
COMMENT ON COLUMN reporting.predictions.model IS 'The registered model.';
COMMENT ON COLUMN reporting.predictions.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.predictions.predicted_class IS 'The most probable class; for an anomaly model normal or anomalous.';
COMMENT ON COLUMN reporting.predictions.confidence IS 'Probability of predicted_class, from 0 to 1; null for an anomaly model, which has a score instead.';
COMMENT ON COLUMN reporting.predictions.scored_at IS 'When the result was stored.';
COMMENT ON COLUMN reporting.predictions.score IS 'Anomaly score, larger is more anomalous; null for a classifier.';
COMMENT ON COLUMN reporting.predictions.threshold IS 'The version''s threshold that score was compared with; null for a classifier.';
COMMENT ON COLUMN reporting.predictions.flagged IS 'True when score reached threshold; false for a classifier.';
COMMENT ON COLUMN reporting.predictions.run_id IS 'The scoring run that stored the result.';
COMMENT ON COLUMN reporting.predictions.novelty IS 'How much the image differs from the normal training images, from 0 to 1, independent of score; null for a version that does not measure it.';
COMMENT ON COLUMN reporting.predictions.review IS 'True when novelty reached the version''s novelty_threshold: a person should look at the image, flagged or not.';
COMMENT ON COLUMN reporting.predictions.camera IS 'The camera, which the stream''s pattern takes out of the key; null without a pattern, or when the key does not match.';
COMMENT ON COLUMN reporting.predictions.line IS 'The line, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.predictions.product IS 'The product, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.predictions.result_night IS 'The same as night. A range of nights must name both for Postgres to read these nights only, as reporting.predictions(first_night, last_night) does.';

-- The view, for a range of nights, which it names for each table: Postgres puts the query in the place
-- of the call and plans to read the partitions of these nights only.
CREATE OR REPLACE FUNCTION reporting.predictions(first_night date, last_night date)
RETURNS SETOF reporting.predictions
LANGUAGE sql STABLE AS $$
    SELECT *
    FROM reporting.predictions
    WHERE night BETWEEN first_night AND last_night
        AND result_night BETWEEN first_night AND last_night
$$;
COMMENT ON FUNCTION reporting.predictions(date, date) IS 'Predictions of the nights from first_night to last_night.';
