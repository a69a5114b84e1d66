-- The streams that have images of a night. Each is looked up in the index after the one before, so
-- that the time does not grow with the number of images.
WITH RECURSIVE found (stream) AS (
    (
        SELECT image.stream
        FROM nightscore.image
        WHERE image.night = :night
        ORDER BY image.stream
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT image.stream
        FROM nightscore.image
        WHERE image.night = :night AND image.stream > found.stream
        ORDER BY image.stream
        LIMIT 1
    )
    FROM found
    WHERE found.stream IS NOT NULL
)
SELECT stream FROM found WHERE stream IS NOT NULL ORDER BY stream
