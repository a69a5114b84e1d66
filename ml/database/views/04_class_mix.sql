-- Read from the sums of the runs (migration 0010), not from the images.
CREATE OR REPLACE VIEW reporting.class_mix AS
SELECT
    run.stream,
    total.night,
    total.model,
    total.version,
    total.predicted_class,
    sum(total.images)::bigint AS images,
    sum(total.images)::double precision / sum(sum(total.images)) OVER (
        PARTITION BY run.stream, total.night, total.model, total.version
    )::double precision AS share
FROM nightscore.class_sum AS total
JOIN nightscore.scoring_run AS run USING (run_id)
GROUP BY run.stream, total.night, total.model, total.version, total.predicted_class;

COMMENT ON VIEW reporting.class_mix IS 'One row per night, model version and class that it predicted.';
COMMENT ON COLUMN reporting.class_mix.stream IS 'The stream.';
COMMENT ON COLUMN reporting.class_mix.night IS 'The night of the images.';
COMMENT ON COLUMN reporting.class_mix.model IS 'The registered model.';
COMMENT ON COLUMN reporting.class_mix.version IS 'The version of the model.';
COMMENT ON COLUMN reporting.class_mix.predicted_class IS 'The predicted class; for an anomaly model normal or anomalous.';
COMMENT ON COLUMN reporting.class_mix.images IS 'Number of images for which the version predicted the class.';
COMMENT ON COLUMN reporting.class_mix.share IS 'images as a share of the images that the version scored in that night, from 0 to 1.';
