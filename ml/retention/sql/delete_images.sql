DELETE FROM nightscore.image
WHERE image.night = :night AND image.image_id = ANY (:image_ids)
