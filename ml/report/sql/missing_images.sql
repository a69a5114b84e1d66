-- One row per image of a run that is neither scored nor rejected. `images` is their number in all.
SELECT image_uri, shard, attempts, error, count(*) OVER () AS images
FROM (
    SELECT DISTINCT image_uri, shard, attempts, error
    FROM reporting.missing_images(:nights)
    WHERE run_id = :run_id
) AS missing
ORDER BY shard, image_uri
LIMIT :most
