-- The classes that the run's versions predicted, one row per version and class.
SELECT model, version, predicted_class, CAST(sum(images) AS bigint) AS images,
    CAST(sum(images) AS double precision)
        / sum(sum(images)) OVER (PARTITION BY model, version) AS share,
    sum(confidence) / sum(images) AS confidence
FROM nightscore.class_sum
WHERE run_id = :run_id AND night = ANY (:nights)
GROUP BY model, version, predicted_class
ORDER BY model, images DESC, predicted_class
