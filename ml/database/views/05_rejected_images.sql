CREATE OR REPLACE VIEW reporting.rejected_images AS
SELECT
    image.stream,
    image.night,
    image.uri AS image_uri,
    rejection.reason,
    rejection.detail,
    rejection.model,
    rejection.version,
    rejection.rejected_at,
    rejection.run_id,
    camera.camera,
    nullif(camera.line, '') AS line,
    nullif(camera.product, '') AS product,
    rejection.night AS result_night
FROM nightscore.rejection
JOIN nightscore.image USING (night, image_id)
LEFT JOIN nightscore.camera USING (camera_id);

COMMENT ON VIEW reporting.rejected_images IS 'One row per rejection: an image that a version could not score.';
COMMENT ON COLUMN reporting.rejected_images.stream IS 'The stream of the image.';
COMMENT ON COLUMN reporting.rejected_images.night IS 'The night of the image: the date in its key, dt=YYYY-MM-DD.';
COMMENT ON COLUMN reporting.rejected_images.image_uri IS 'The image in S3.';
COMMENT ON COLUMN reporting.rejected_images.reason IS 'Reason code: empty, not_an_image, truncated, unsupported, too_many_pixels, too_many_bytes, too_complex, gone, changed or not_finite. After gone and changed, the image is tried again when it is found again.';
COMMENT ON COLUMN reporting.rejected_images.detail IS 'Details of the reason, as text.';
COMMENT ON COLUMN reporting.rejected_images.model IS 'The registered model.';
COMMENT ON COLUMN reporting.rejected_images.version IS 'The version that would have scored the image.';
COMMENT ON COLUMN reporting.rejected_images.rejected_at IS 'When the rejection was stored.';
COMMENT ON COLUMN reporting.rejected_images.run_id IS 'The scoring run that stored the result.';
COMMENT ON COLUMN reporting.rejected_images.camera IS 'The camera, which the stream''s pattern takes out of the key; null without a pattern, or when the key does not match.';
COMMENT ON COLUMN reporting.rejected_images.line IS 'The line, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.rejected_images.product IS 'The product, as the pattern gives it; null if it gives none.';
COMMENT ON COLUMN reporting.rejected_images.result_night IS 'The same as night. A range of nights must name both for Postgres to read these nights only, as reporting.rejected_images(first_night, last_night) does.';

-- The view, for a range of nights, which it names for each table: Postgres puts the query in the place
-- of the call and plans to read the partitions of these nights only.
CREATE OR REPLACE FUNCTION reporting.rejected_images(first_night date, last_night date)
RETURNS SETOF reporting.rejected_images
LANGUAGE sql STABLE AS $$
    SELECT *
    FROM reporting.rejected_images
    WHERE night BETWEEN first_night AND last_night
        AND result_night BETWEEN first_night AND last_night
$$;
COMMENT ON FUNCTION reporting.rejected_images(date, date) IS 'Rejections of the nights from first_night to last_night.';
