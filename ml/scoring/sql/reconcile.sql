-- Counts what became of the images in the run's manifest. An image is `scored` when every pinned
-- version has scored it, and `settled` when every pinned version has scored or rejected it. It
-- counts as rejected when it is settled but not scored, and as missing when it is not settled. A
-- rejection with a transient reason counts only if this run's shard is finished.
WITH outcome AS (
    SELECT
        manifest.shard,
        bool_and(prediction.model IS NOT NULL) AS scored,
        bool_and(
            prediction.model IS NOT NULL
            OR (
                rejection.model IS NOT NULL
                AND (rejection.reason <> ALL (:transient) OR shard.finished_at IS NOT NULL)
            )
        ) AS settled,
        bool_or(coalesce(prediction.flagged, false)) AS flagged,
        bool_or(coalesce(prediction.review, false)) AS review
    FROM nightscore.manifest
    JOIN nightscore.scoring_run_model AS pinned USING (run_id)
    LEFT JOIN nightscore.shard ON shard.run_id = manifest.run_id AND shard.number = manifest.shard
    LEFT JOIN nightscore.prediction
        ON prediction.night = ANY (:nights)
        AND prediction.night = manifest.night
        AND prediction.image_id = manifest.image_id
        AND prediction.model = pinned.model
        AND prediction.version = pinned.version
    LEFT JOIN nightscore.rejection
        ON rejection.night = ANY (:nights)
        AND rejection.night = manifest.night
        AND rejection.image_id = manifest.image_id
        AND rejection.model = pinned.model
        AND rejection.version = pinned.version
    WHERE manifest.run_id = :run_id
        AND manifest.night = ANY (:nights)
    GROUP BY manifest.night, manifest.image_id, manifest.shard
)
SELECT
    count(*) AS discovered,
    count(*) FILTER (WHERE scored) AS scored,
    count(*) FILTER (WHERE settled AND NOT scored) AS rejected,
    count(*) FILTER (WHERE flagged) AS anomalies,
    count(*) FILTER (WHERE review) AS to_review,
    count(*) FILTER (WHERE NOT settled) AS missing,
    array_agg(DISTINCT shard) FILTER (WHERE NOT settled) AS missing_shards
FROM outcome
