-- The partition of a table whose detachment was interrupted; Postgres allows one at a time.
SELECT partition.relname
FROM pg_inherits
JOIN pg_class AS parent ON parent.oid = pg_inherits.inhparent
JOIN pg_class AS partition ON partition.oid = pg_inherits.inhrelid
WHERE parent.relnamespace = 'nightscore'::regnamespace
    AND parent.relname = :table_name
    AND pg_inherits.inhdetachpending
