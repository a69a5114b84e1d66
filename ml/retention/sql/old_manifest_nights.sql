-- The streams and nights with a manifest in the partition of all nights before one.
SELECT DISTINCT run.stream, looked_at.night
FROM nightscore.scoring_run AS run
CROSS JOIN LATERAL (
    SELECT CAST(generate_series(run.lookback_from, run.night, interval '1 day') AS date) AS night
) AS looked_at
WHERE looked_at.night < :next_night
    AND EXISTS (
        SELECT
        FROM nightscore.manifest
        WHERE manifest.night < :next_night
            AND manifest.run_id = run.run_id
            AND manifest.night = looked_at.night
    )
ORDER BY looked_at.night, run.stream
