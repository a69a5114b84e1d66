-- The run's flagged images, the highest score first.
SELECT image.uri, prediction.model, prediction.version, prediction.score, prediction.threshold,
    prediction.heatmap_uri,
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
    AND prediction.flagged
ORDER BY prediction.score DESC, image.uri
LIMIT :most
