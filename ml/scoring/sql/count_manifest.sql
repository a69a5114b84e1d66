SELECT count(*)
FROM nightscore.manifest
WHERE run_id = :run_id AND night = ANY (:nights)
