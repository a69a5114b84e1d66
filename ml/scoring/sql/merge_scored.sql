-- Staged results become visible. The primary key keeps an image from being stored twice for a
-- version, whoever scored it first.
INSERT INTO nightscore.prediction (
    night, image_id, model, version, run_id,
    predicted_class, confidence, score, threshold, flagged, heatmap_uri, novelty, review
)
SELECT
    night, image_id, model, version, :run_id,
    predicted_class, confidence, score, threshold, flagged, heatmap_uri, novelty, review
FROM staging
WHERE reason IS NULL
ORDER BY night, image_id, model, version
ON CONFLICT (night, image_id, model, version) DO NOTHING
