-- The images of a shard for which a pinned version has no result: at the first attempt all images,
-- at a retry the remaining ones. A rejection is a result unless its reason is transient. There is
-- no ORDER BY, so that the first rows come at once.
SELECT image.night, image.image_id, image.uri, image.etag, image.bytes
FROM nightscore.manifest
JOIN nightscore.image USING (night, image_id)
WHERE manifest.run_id = :run_id
    AND manifest.shard = :shard
    AND manifest.night = ANY (:nights)
    AND image.night = ANY (:nights)
    AND EXISTS (
        SELECT
        FROM nightscore.scoring_run_model AS pinned
        WHERE pinned.run_id = :run_id
            AND NOT EXISTS (
                SELECT
                FROM nightscore.prediction
                WHERE prediction.night = ANY (:nights)
                    AND prediction.night = image.night
                    AND prediction.image_id = image.image_id
                    AND prediction.model = pinned.model
                    AND prediction.version = pinned.version
            )
            AND NOT EXISTS (
                SELECT
                FROM nightscore.rejection
                WHERE rejection.night = ANY (:nights)
                    AND rejection.night = image.night
                    AND rejection.image_id = image.image_id
                    AND rejection.model = pinned.model
                    AND rejection.version = pinned.version
                    AND rejection.reason <> ALL (:transient)
            )
    )
