DELETE FROM nightscore.rejection
WHERE rejection.night = :night AND rejection.image_id = ANY (:image_ids)
