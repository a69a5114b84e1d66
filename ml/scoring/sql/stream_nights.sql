-- The nights that a stream's runs have scored or looked back on, from :first_night to :last_night.
-- Runs are asked, not images: these lie in one partition per night.
SELECT DISTINCT day::date AS night
FROM nightscore.scoring_run AS run
CROSS JOIN LATERAL generate_series(
    greatest(run.lookback_from, CAST(:first_night AS date))::timestamp,
    least(run.night, CAST(:last_night AS date))::timestamp,
    interval '1 day'
) AS day
WHERE run.stream = :stream
ORDER BY night
