SELECT * FROM reporting.model_versions ORDER BY model, version
