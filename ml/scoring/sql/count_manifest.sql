-- How many images a run has to score, and whether one of them is a built-in sample.
SELECT
    count(*) AS discovered,
    coalesce(bool_or(image.uri LIKE '%/synthetic-%'), false) AS synthetic
FROM nightscore.manifest
JOIN nightscore.image USING (night, image_id)
WHERE manifest.run_id = :run_id
    AND manifest.night = ANY (:nights)
    AND image.night = ANY (:nights)
