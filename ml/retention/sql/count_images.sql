-- How many images a stream has in a night.
SELECT count(*) FROM nightscore.image WHERE image.night = :night AND image.stream = :stream
