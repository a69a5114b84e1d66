-- The stream is that of the run, since one look at a run is cheaper than one at each image.
CREATE OR REPLACE VIEW reporting.rejection_reasons AS
SELECT
    run.stream,
    rejection.night,
    rejection.reason,
    count(DISTINCT rejection.image_id) AS images
FROM nightscore.rejection
JOIN nightscore.scoring_run AS run USING (run_id)
GROUP BY run.stream, rejection.night, rejection.reason;

COMMENT ON VIEW reporting.rejection_reasons IS 'One row per night and reason for which images could not be scored.';
COMMENT ON COLUMN reporting.rejection_reasons.stream IS 'The stream.';
COMMENT ON COLUMN reporting.rejection_reasons.night IS 'The night of the images.';
COMMENT ON COLUMN reporting.rejection_reasons.reason IS 'Reason code, as in reporting.rejected_images.';
COMMENT ON COLUMN reporting.rejection_reasons.images IS 'Number of images that at least one version rejected for the reason.';
