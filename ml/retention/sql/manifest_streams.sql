-- The streams whose runs have a manifest of a night.
SELECT DISTINCT run.stream
FROM nightscore.scoring_run AS run
WHERE run.lookback_from <= :night
    AND run.night >= :night
    AND EXISTS (
        SELECT
        FROM nightscore.manifest
        WHERE manifest.night = :night AND manifest.run_id = run.run_id
    )
ORDER BY run.stream
