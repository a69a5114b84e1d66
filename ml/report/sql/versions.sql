-- The versions that the run was opened with.
SELECT pinned.model, pinned.version, described.alias, described.task, described.threshold,
    described.metrics, described.registered_at, described.gate_reason, described.synthetic,
    described.novelty_threshold, described.threshold_policy, described.threshold_detail
FROM nightscore.scoring_run_model AS pinned
LEFT JOIN reporting.model_versions AS described USING (model, version)
WHERE pinned.run_id = :run_id
ORDER BY pinned.model
