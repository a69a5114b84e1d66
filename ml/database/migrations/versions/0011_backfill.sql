-- All nights are summed (0010_sums.sql); those that are scored from now on are summed as they are stored.
DROP TABLE nightscore.summed_night;
