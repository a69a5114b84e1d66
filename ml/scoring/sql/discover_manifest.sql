-- Adds to the run's manifest the listed images that it has to score, behind the shards it has.
-- For its own night a run owes every image a result by each pinned version. For the nights before
-- it, only images that came late: those that no version of the model has settled. A rejection
-- settles an image unless its reason is transient.
WITH pending AS (
    SELECT image.night, image.image_id, image.uri
    FROM listing
    JOIN nightscore.image
        ON image.night = listing.night
        AND image.stream = :stream
        AND image.uri = listing.uri
        AND image.etag = listing.etag
    WHERE EXISTS (
        SELECT
        FROM nightscore.scoring_run_model AS pinned
        WHERE pinned.run_id = :run_id
            AND NOT EXISTS (
                SELECT
                FROM nightscore.prediction
                WHERE prediction.night = image.night
                    AND prediction.image_id = image.image_id
                    AND prediction.model = pinned.model
                    AND (prediction.version = pinned.version OR image.night < :night)
            )
            AND NOT EXISTS (
                SELECT
                FROM nightscore.rejection
                WHERE rejection.night = image.night
                    AND rejection.image_id = image.image_id
                    AND rejection.model = pinned.model
                    AND (rejection.version = pinned.version OR image.night < :night)
                    AND rejection.reason <> ALL (:transient)
            )
    )
    AND NOT EXISTS (
        SELECT
        FROM nightscore.manifest
        WHERE manifest.run_id = :run_id
            AND manifest.night = image.night
            AND manifest.image_id = image.image_id
    )
)
-- At most :max_shards mapped tasks, however long the night. The number of images comes from a
-- window: a subquery of it beside `pending` would be counted anew for each of them.
INSERT INTO nightscore.manifest (run_id, night, image_id, shard)
SELECT
    :run_id,
    night,
    image_id,
    (SELECT coalesce(max(number) + 1, 0) FROM nightscore.shard WHERE run_id = :run_id)
        + (row_number() OVER (ORDER BY night, uri) - 1)
        / greatest(:shard_size, ceil(count(*) OVER ()::numeric / :max_shards))::bigint
FROM pending
