-- Whether a manifest of a night before one is left.
SELECT EXISTS (SELECT FROM nightscore.manifest WHERE manifest.night < :next_night)
