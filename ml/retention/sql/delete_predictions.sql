DELETE FROM nightscore.prediction
WHERE prediction.night = :night AND prediction.image_id = ANY (:image_ids)
