-- Makes the staged predictions visible. The primary key keeps an image from being stored twice for
-- a version: the first result stays.
INSERT INTO nightscore.prediction (
    night, image_id, model, version, run_id,
    predicted_class, confidence, score, threshold, flagged, heatmap_uri, novelty, review
)
SELECT
    night, image_id, model, version, :run_id,
    predicted_class, confidence, score, threshold, flagged, heatmap_uri, novelty, review
FROM staged_prediction
ORDER BY night, image_id, model, version
ON CONFLICT (night, image_id, model, version) DO NOTHING
