-- The images of a shard that a pinned version has not settled: all of them at the first attempt,
-- what is left at a retry. In no order: so the first come at once.
SELECT image.night, image.image_id, image.uri, image.etag, image.bytes
FROM nightscore.manifest
JOIN nightscore.image USING (night, image_id)
WHERE manifest.run_id = :run_id
    AND manifest.shard = :shard
    AND EXISTS (
        SELECT
        FROM nightscore.scoring_run_model AS pinned
        WHERE pinned.run_id = :run_id
            AND NOT EXISTS (
                SELECT
                FROM nightscore.prediction
                WHERE prediction.night = image.night
                    AND prediction.image_id = image.image_id
                    AND prediction.model = pinned.model
                    AND prediction.version = pinned.version
            )
            AND NOT EXISTS (
                SELECT
                FROM nightscore.rejection
                WHERE rejection.night = image.night
                    AND rejection.image_id = image.image_id
                    AND rejection.model = pinned.model
                    AND rejection.version = pinned.version
                    AND rejection.reason <> ALL (:transient)
            )
    )
