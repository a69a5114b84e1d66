-- The classes that the run's versions predicted, one row per version and class.
SELECT prediction.model, prediction.version, prediction.predicted_class, count(*) AS images,
    count(*)::double precision
        / sum(count(*)) OVER (PARTITION BY prediction.model, prediction.version) AS share,
    avg(prediction.confidence) AS confidence
FROM nightscore.manifest
JOIN nightscore.scoring_run_model AS pinned USING (run_id)
JOIN nightscore.prediction
    ON prediction.night = manifest.night
    AND prediction.image_id = manifest.image_id
    AND prediction.model = pinned.model
    AND prediction.version = pinned.version
WHERE manifest.run_id = :run_id
GROUP BY prediction.model, prediction.version, prediction.predicted_class
ORDER BY prediction.model, images DESC, prediction.predicted_class
