-- The run's rejected images.
SELECT DISTINCT image.uri, rejection.reason, rejection.detail
FROM nightscore.manifest
JOIN nightscore.image USING (night, image_id)
JOIN nightscore.scoring_run_model AS pinned USING (run_id)
JOIN nightscore.rejection
    ON rejection.night = ANY (:nights)
    AND rejection.night = manifest.night
    AND rejection.image_id = manifest.image_id
    AND rejection.model = pinned.model
    AND rejection.version = pinned.version
WHERE manifest.run_id = :run_id
    AND manifest.night = ANY (:nights)
    AND image.night = ANY (:nights)
ORDER BY rejection.reason, image.uri
LIMIT :most
