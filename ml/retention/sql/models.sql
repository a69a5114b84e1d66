-- The models of which a version was ever registered, also those that nightscore.yaml no longer names.
SELECT DISTINCT model FROM nightscore.model_version
