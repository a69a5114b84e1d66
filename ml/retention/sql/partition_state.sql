-- Whether a table is still a partition, or a detachment of it was interrupted; no row when it is gone.
SELECT
    pg_inherits.inhrelid IS NOT NULL AS is_attached,
    coalesce(pg_inherits.inhdetachpending, false) AS is_pending
FROM pg_class
LEFT JOIN pg_inherits ON pg_inherits.inhrelid = pg_class.oid
WHERE pg_class.relnamespace = 'nightscore'::regnamespace
    AND pg_class.relkind = 'r'
    AND pg_class.relname = :partition
