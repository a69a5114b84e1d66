-- The tables that are partitioned by night.
SELECT pg_class.relname AS name
FROM pg_class
WHERE pg_class.relnamespace = 'nightscore'::regnamespace AND pg_class.relkind = 'p'
