-- The tables by night that this login may not detach partitions of.
SELECT pg_class.relname AS name
FROM pg_class
WHERE pg_class.relnamespace = 'nightscore'::regnamespace
    AND pg_class.relkind = 'p'
    AND pg_class.relname IN ('image', 'manifest', 'prediction', 'rejection')
    AND NOT pg_has_role(pg_class.relowner, 'USAGE')
ORDER BY pg_class.relname
