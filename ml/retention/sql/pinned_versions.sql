-- The versions of a model that scoring runs were opened with: one row per version and stream.
SELECT
    pinned.version,
    run.stream,
    max(run.night) AS last_night,
    bool_or(run.status = 'open') AS is_open
FROM nightscore.scoring_run_model AS pinned
JOIN nightscore.scoring_run AS run USING (run_id)
WHERE pinned.model = :model
GROUP BY pinned.version, run.stream
