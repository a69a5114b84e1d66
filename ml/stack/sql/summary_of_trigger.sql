-- The summary of the scoring run that a DAG run opened.
SELECT summary.*
FROM reporting.nightly_summary AS summary
JOIN nightscore.scoring_run AS run USING (run_id)
WHERE run.trigger = :trigger
