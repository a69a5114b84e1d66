-- When retention began to delete the version in MLflow; null for a version that can be loaded. The row
-- stays, since results name the version.
ALTER TABLE nightscore.model_version ADD COLUMN deleted_at timestamptz;
