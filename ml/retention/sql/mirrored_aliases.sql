-- The versions of a model that an alias names, as the tables have it.
SELECT DISTINCT version FROM nightscore.model_alias WHERE model = :model
