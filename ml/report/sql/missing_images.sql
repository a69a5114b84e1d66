-- Images that a run has found and not settled, one row each.
SELECT image_uri, shard, attempts, error, count(*) OVER () AS images
FROM (
    SELECT DISTINCT image_uri, shard, attempts, error
    FROM reporting.missing_images
    WHERE run_id = :run_id
) AS missing
ORDER BY shard, image_uri
LIMIT :most
