-- Read from the sums of the runs (migration 0010), not from the images.
CREATE OR REPLACE VIEW reporting.camera_class_mix AS
SELECT
    mix.stream,
    mix.night,
    camera.camera,
    nullif(camera.line, '') AS line,
    nullif(camera.product, '') AS product,
    mix.model,
    mix.version,
    mix.predicted_class,
    mix.images::bigint AS images,
    mix.images::double precision / sum(mix.images) OVER (
        PARTITION BY mix.stream, mix.night, mix.camera_id, mix.model, mix.version
    )::double precision AS share
FROM (
    SELECT
        run.stream, total.night, total.camera_id, total.model, total.version,
        total.predicted_class,
        sum(total.images) AS images
    FROM nightscore.class_sum AS total
    JOIN nightscore.scoring_run AS run USING (run_id)
    GROUP BY run.stream, total.night, total.camera_id, total.model, total.version, total.predicted_class
) AS mix
LEFT JOIN nightscore.camera USING (camera_id);

COMMENT ON VIEW reporting.camera_class_mix IS 'One row per night, camera, model version and class that it predicted.';
COMMENT ON COLUMN reporting.camera_class_mix.stream IS 'The stream.';
COMMENT ON COLUMN reporting.camera_class_mix.night IS 'The night of the images.';
COMMENT ON COLUMN reporting.camera_class_mix.camera IS 'The camera, which the stream''s pattern takes out of the key; null without a pattern, or when the key does not match.';
COMMENT ON COLUMN reporting.camera_class_mix.line IS 'The line, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.camera_class_mix.product IS 'The product, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.camera_class_mix.model IS 'The registered model.';
COMMENT ON COLUMN reporting.camera_class_mix.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.camera_class_mix.predicted_class IS 'The predicted class; for an anomaly model normal or anomalous.';
COMMENT ON COLUMN reporting.camera_class_mix.images IS 'Number of images for which the version predicted the class.';
COMMENT ON COLUMN reporting.camera_class_mix.share IS 'images as a share of the images of the camera that the version scored in that night, from 0 to 1.';
