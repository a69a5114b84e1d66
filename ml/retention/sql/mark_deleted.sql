-- From here on nothing loads or promotes the version.
UPDATE nightscore.model_version
SET deleted_at = now()
WHERE model = :model AND version = :version AND deleted_at IS NULL
