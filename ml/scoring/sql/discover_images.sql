-- Adds the listed images that the table does not have yet. `listing` is a temporary table, in which
-- a camera is a place in :camera_ids, from 1, or null.
INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified, camera_id)
SELECT
    listing.night, :stream, listing.uri, listing.etag, listing.bytes, listing.modified,
    (CAST(:camera_ids AS integer[]))[listing.camera]
FROM listing
WHERE NOT EXISTS (
    SELECT FROM nightscore.image
    WHERE image.night = ANY (:nights)
        AND image.night = listing.night
        AND image.stream = :stream
        AND image.uri = listing.uri
        AND image.etag = listing.etag
)
ORDER BY listing.night, listing.uri
ON CONFLICT DO NOTHING
