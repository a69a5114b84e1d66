-- The versions of a model, one row per version.
SELECT version, mlflow_run_id AS run_id, registered_at, deleted_at
FROM nightscore.model_version
WHERE model = :model
