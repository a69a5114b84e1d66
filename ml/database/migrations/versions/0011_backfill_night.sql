INSERT INTO nightscore.summed_night (stream, night)
SELECT :stream, :night
FROM (SELECT nightscore.sum_night(:stream, :night)) AS sums
