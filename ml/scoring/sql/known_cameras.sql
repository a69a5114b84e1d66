-- The cameras of a stream that are known.
SELECT camera_id, camera, line, product
FROM nightscore.camera
WHERE stream = :stream
ORDER BY camera_id
