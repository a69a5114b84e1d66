-- The runs that are open: nothing is deleted of the nights that they look at.
SELECT run.run_id, run.stream, run.lookback_from, run.night
FROM nightscore.scoring_run AS run
WHERE run.status = 'open'
