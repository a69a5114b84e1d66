CREATE OR REPLACE VIEW reporting.missing_images AS
SELECT
    run.stream,
    image.night,
    run.run_id,
    image.uri AS image_uri,
    pinned.model,
    pinned.version,
    manifest.shard,
    shard.attempts,
    shard.error,
    camera.camera,
    nullif(camera.line, '') AS line,
    nullif(camera.product, '') AS product
FROM nightscore.scoring_run AS run
JOIN nightscore.manifest ON manifest.run_id = run.run_id
JOIN nightscore.image ON image.night = manifest.night AND image.image_id = manifest.image_id
JOIN nightscore.scoring_run_model AS pinned ON pinned.run_id = run.run_id
LEFT JOIN nightscore.camera USING (camera_id)
LEFT JOIN nightscore.shard ON shard.run_id = manifest.run_id AND shard.number = manifest.shard
WHERE run.status = 'failed'
    AND NOT EXISTS (
        SELECT
        FROM nightscore.prediction
        WHERE prediction.night = manifest.night
            AND prediction.image_id = manifest.image_id
            AND prediction.model = pinned.model
            AND prediction.version = pinned.version
    )
    AND NOT EXISTS (
        SELECT
        FROM nightscore.rejection
        WHERE rejection.night = manifest.night
            AND rejection.image_id = manifest.image_id
            AND rejection.model = pinned.model
            AND rejection.version = pinned.version
            -- After a transient reason (ml.images.rejection.TRANSIENT) the image is settled only if its
            -- shard has finished, as in reconcile.sql.
            AND (rejection.reason NOT IN ('gone', 'changed') OR shard.finished_at IS NOT NULL)
    );

COMMENT ON VIEW reporting.missing_images IS 'One row per image of a failed run and version that has neither scored nor rejected it, in this run or later.';
COMMENT ON COLUMN reporting.missing_images.stream IS 'The stream of the image.';
COMMENT ON COLUMN reporting.missing_images.night IS 'The night of the image: the date in its key, dt=YYYY-MM-DD.';
COMMENT ON COLUMN reporting.missing_images.run_id IS 'The scoring run that failed.';
COMMENT ON COLUMN reporting.missing_images.image_uri IS 'The image in S3.';
COMMENT ON COLUMN reporting.missing_images.model IS 'The registered model.';
COMMENT ON COLUMN reporting.missing_images.version IS 'The version that has no result for the image.';
COMMENT ON COLUMN reporting.missing_images.shard IS 'The shard of the run with the image.';
COMMENT ON COLUMN reporting.missing_images.attempts IS 'How often the shard was started; null when the run failed before it was planned.';
COMMENT ON COLUMN reporting.missing_images.error IS 'The error of the shard''s last attempt; null when it was killed or never started.';
COMMENT ON COLUMN reporting.missing_images.camera IS 'The camera, which the stream''s pattern takes out of the key; null without a pattern, or when the key does not match.';
COMMENT ON COLUMN reporting.missing_images.line IS 'The line, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.missing_images.product IS 'The product, as the pattern gives it; null if it gives none.';

-- The view, for some nights, which it names for each table. It runs with its owner's rights, as the view
-- does: a condition on the nights cannot reach the tables that have no row.
CREATE OR REPLACE FUNCTION reporting.missing_images(nights date[])
RETURNS SETOF reporting.missing_images
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_variable
BEGIN
    RETURN QUERY
    SELECT
        run.stream,
        image.night,
        run.run_id,
        image.uri AS image_uri,
        pinned.model,
        pinned.version,
        manifest.shard,
        shard.attempts,
        shard.error,
        camera.camera,
        nullif(camera.line, '') AS line,
        nullif(camera.product, '') AS product
    FROM nightscore.scoring_run AS run
    JOIN nightscore.manifest ON manifest.run_id = run.run_id
    JOIN nightscore.image ON image.night = manifest.night AND image.image_id = manifest.image_id
    JOIN nightscore.scoring_run_model AS pinned ON pinned.run_id = run.run_id
    LEFT JOIN nightscore.camera USING (camera_id)
    LEFT JOIN nightscore.shard ON shard.run_id = manifest.run_id AND shard.number = manifest.shard
    WHERE run.status = 'failed'
        AND manifest.night = ANY (nights)
        AND image.night = ANY (nights)
        AND NOT EXISTS (
            SELECT
            FROM nightscore.prediction
            WHERE prediction.night = ANY (nights)
                AND prediction.night = manifest.night
                AND prediction.image_id = manifest.image_id
                AND prediction.model = pinned.model
                AND prediction.version = pinned.version
        )
        AND NOT EXISTS (
            SELECT
            FROM nightscore.rejection
            WHERE rejection.night = ANY (nights)
                AND rejection.night = manifest.night
                AND rejection.image_id = manifest.image_id
                AND rejection.model = pinned.model
                AND rejection.version = pinned.version
                -- After a transient reason (ml.images.rejection.TRANSIENT) the image is settled only if its
                -- shard has finished, as in reconcile.sql.
                AND (rejection.reason NOT IN ('gone', 'changed') OR shard.finished_at IS NOT NULL)
        );
END
$$;
COMMENT ON FUNCTION reporting.missing_images(date[]) IS 'Missing images of some nights.';

CREATE OR REPLACE FUNCTION reporting.missing_images(first_night date, last_night date)
RETURNS SETOF reporting.missing_images
LANGUAGE sql STABLE AS $$
    SELECT *
    FROM reporting.missing_images(
        ARRAY(SELECT generate_series(first_night::timestamp, last_night::timestamp, '1 day')::date)
    )
$$;
COMMENT ON FUNCTION reporting.missing_images(date, date) IS 'Missing images of the nights from first_night to last_night.';
