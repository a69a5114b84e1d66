SELECT drift.model, drift.version, drift.psi, drift.alarm, drift.images
FROM reporting.score_drift AS drift
JOIN nightscore.scoring_run_model AS pinned USING (model, version)
WHERE pinned.run_id = :run_id AND drift.stream = :stream AND drift.night = :night
ORDER BY drift.model
