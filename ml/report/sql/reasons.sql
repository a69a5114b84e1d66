-- How many images of the run were rejected for each reason; an image counts once per reason.
SELECT rejection.reason, count(DISTINCT (rejection.night, rejection.image_id)) AS images
FROM nightscore.manifest
JOIN nightscore.scoring_run_model AS pinned USING (run_id)
JOIN nightscore.rejection
    ON rejection.night = ANY (:nights)
    AND rejection.night = manifest.night
    AND rejection.image_id = manifest.image_id
    AND rejection.model = pinned.model
    AND rejection.version = pinned.version
WHERE manifest.run_id = :run_id
    AND manifest.night = ANY (:nights)
GROUP BY rejection.reason
ORDER BY images DESC, rejection.reason
