-- The snapshots of the versions that are not deleted; of one snapshot if it is named.
SELECT DISTINCT snapshot_uri
FROM nightscore.model_version
WHERE deleted_at IS NULL AND (CAST(:uri AS text) IS NULL OR snapshot_uri = :uri)
