-- The nights that the open runs of a stream may reach, one row per run.
SELECT lookback_from AS first_night, night AS last_night
FROM nightscore.scoring_run
WHERE stream = :stream AND status = 'open'
