-- The images of the named runs by what became of them; unknown until a run is reconciled, but for
-- `discovered`, which is known once the images are listed.
SELECT run.stream, outcome.outcome, outcome.images
FROM reporting.nightly_summary AS run
CROSS JOIN LATERAL (
    VALUES ('discovered', run.discovered), ('scored', run.scored), ('rejected', run.rejected)
) AS outcome (outcome, images)
WHERE run.run_id = ANY (:run_ids)
