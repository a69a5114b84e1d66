-- How many images the runs of a stream had to score of a night.
SELECT count(*)
FROM nightscore.manifest
WHERE manifest.night = :night
    AND manifest.run_id IN (
        SELECT run.run_id
        FROM nightscore.scoring_run AS run
        WHERE run.stream = :stream AND run.lookback_from <= :night AND run.night >= :night
    )
