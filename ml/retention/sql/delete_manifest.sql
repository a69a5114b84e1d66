-- Deletes some rows of a stream's manifests of a night. The partition is named by its night, so a row's
-- place in it is enough to find it again.
DELETE FROM nightscore.manifest
WHERE manifest.night = :night
    AND manifest.ctid = ANY (ARRAY(
        SELECT listed.ctid
        FROM nightscore.manifest AS listed
        WHERE listed.night = :night
            AND listed.run_id IN (
                SELECT run.run_id
                FROM nightscore.scoring_run AS run
                WHERE run.stream = :stream AND run.lookback_from <= :night AND run.night >= :night
            )
        LIMIT :batch
    ))
