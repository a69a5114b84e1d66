-- Adds to the run's manifest the listed images that it has to score, in new shards after those that
-- it already has.
-- In the run's own night, an image is pending until each pinned version has a result for it. In the
-- nights before, an image is pending only if it came late: no version of a pinned model has a
-- result for it. A rejection is a result unless its reason is transient.
WITH pending AS (
    SELECT image.night, image.image_id, image.uri
    FROM listing
    JOIN nightscore.image
        ON image.night = ANY (:nights)
        AND image.night = listing.night
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
                WHERE prediction.night = ANY (:nights)
                    AND prediction.night = image.night
                    AND prediction.image_id = image.image_id
                    AND prediction.model = pinned.model
                    AND (prediction.version = pinned.version OR image.night < :night)
            )
            AND NOT EXISTS (
                SELECT
                FROM nightscore.rejection
                WHERE rejection.night = ANY (:nights)
                    AND rejection.night = image.night
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
            AND manifest.night = ANY (:nights)
            AND manifest.night = image.night
            AND manifest.image_id = image.image_id
    )
)
-- At most :max_shards mapped tasks, however many images the night has. A window function counts the
-- images: a subquery would count them again for each row.
INSERT INTO nightscore.manifest (run_id, night, image_id, shard)
SELECT
    :run_id,
    night,
    image_id,
    (SELECT coalesce(max(number) + 1, 0) FROM nightscore.shard WHERE run_id = :run_id)
        + (row_number() OVER (ORDER BY night, uri) - 1)
        / greatest(:shard_size, ceil(count(*) OVER ()::numeric / :max_shards))::bigint
FROM pending
