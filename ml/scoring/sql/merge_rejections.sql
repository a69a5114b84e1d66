-- Makes the staged rejections visible. An image that the version has scored keeps its prediction.
-- A rejection that is repeated stays as it was, unless its reason has changed.
INSERT INTO nightscore.rejection (night, image_id, model, version, run_id, reason, detail)
SELECT night, image_id, model, version, :run_id, reason, detail
FROM staged_rejection AS staged
WHERE NOT EXISTS (
    SELECT
    FROM nightscore.prediction
    WHERE prediction.night = ANY (:nights)
        AND prediction.night = staged.night
        AND prediction.image_id = staged.image_id
        AND prediction.model = staged.model
        AND prediction.version = staged.version
)
ORDER BY night, image_id, model, version
ON CONFLICT (night, image_id, model, version) DO UPDATE
SET run_id = excluded.run_id,
    reason = excluded.reason,
    detail = excluded.detail,
    rejected_at = excluded.rejected_at
WHERE rejection.reason <> excluded.reason
