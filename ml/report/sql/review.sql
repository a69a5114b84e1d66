-- The run's images that are marked for review, the most novel first.
SELECT image.uri, prediction.model, prediction.version, prediction.novelty, prediction.score,
    prediction.flagged,
    camera.camera, camera.line, camera.product
FROM nightscore.manifest
JOIN nightscore.image USING (night, image_id)
JOIN nightscore.scoring_run_model AS pinned USING (run_id)
JOIN nightscore.prediction
    ON prediction.night = ANY (:nights)
    AND prediction.night = manifest.night
    AND prediction.image_id = manifest.image_id
    AND prediction.model = pinned.model
    AND prediction.version = pinned.version
LEFT JOIN nightscore.camera ON camera.camera_id = image.camera_id
WHERE manifest.run_id = :run_id
    AND manifest.night = ANY (:nights)
    AND image.night = ANY (:nights)
    AND prediction.review
ORDER BY prediction.novelty DESC, image.uri
LIMIT :most
