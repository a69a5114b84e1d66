-- A version that has scored an image keeps its result. A rejection seen again stays as it was,
-- unless its reason has changed.
INSERT INTO nightscore.rejection (night, image_id, model, version, run_id, reason, detail)
SELECT night, image_id, model, version, :run_id, reason, detail
FROM staging
WHERE reason IS NOT NULL
    AND NOT EXISTS (
        SELECT
        FROM nightscore.prediction
        WHERE prediction.night = staging.night
            AND prediction.image_id = staging.image_id
            AND prediction.model = staging.model
            AND prediction.version = staging.version
    )
ORDER BY night, image_id, model, version
ON CONFLICT (night, image_id, model, version) DO UPDATE
SET run_id = excluded.run_id,
    reason = excluded.reason,
    detail = excluded.detail,
    rejected_at = excluded.rejected_at
WHERE rejection.reason <> excluded.reason
