-- The streams that have a run, also those that nightscore.yaml no longer names.
SELECT DISTINCT stream FROM reporting.nightly_summary
