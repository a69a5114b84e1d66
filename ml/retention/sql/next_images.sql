-- The next images of a stream's night to delete, in the order of their numbers.
SELECT image.image_id
FROM nightscore.image
WHERE image.night = :night AND image.stream = :stream AND image.image_id > :after
ORDER BY image.image_id
LIMIT :batch
