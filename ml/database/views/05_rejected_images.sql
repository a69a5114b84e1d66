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
    rejection.run_id
FROM nightscore.rejection
JOIN nightscore.image USING (night, image_id);

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
