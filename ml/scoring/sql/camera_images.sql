-- A page of a stream's images of a night, with their cameras, after the image :uri, :etag.
SELECT image_id, uri, etag, camera_id
FROM nightscore.image
WHERE night = :night AND stream = :stream AND (uri, etag) > (:uri, :etag)
ORDER BY uri, etag
LIMIT :most
