-- The nights of the images in a run's manifest, out of those that it may look back on.
SELECT candidate.night
FROM unnest(CAST(:nights AS date[])) AS candidate (night)
CROSS JOIN LATERAL (
    SELECT
    FROM nightscore.manifest
    WHERE manifest.run_id = :run_id
        AND manifest.night = ANY (:nights)
        AND manifest.night = candidate.night
    LIMIT 1
) AS image
ORDER BY candidate.night
