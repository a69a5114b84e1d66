-- The nights of streams whose sums are still to be computed, the oldest first. A night that is scored
-- meanwhile is among them: results that came before the triggers have not been added.
SELECT run.stream, part.night
FROM (
    SELECT to_date(right(relname, 8), 'YYYYMMDD') AS night
    FROM pg_inherits
    JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'nightscore.prediction'::regclass
) AS part
JOIN nightscore.scoring_run AS run ON part.night BETWEEN run.lookback_from AND run.night
WHERE NOT EXISTS (
    SELECT FROM nightscore.summed_night AS done
    WHERE done.stream = run.stream AND done.night = part.night
)
GROUP BY run.stream, part.night
ORDER BY part.night, run.stream
