-- The partition of a table whose detachment was interrupted; Postgres allows one at a time.
SELECT partition.relname
FROM pg_inherits
JOIN pg_class AS partition ON partition.oid = pg_inherits.inhrelid
WHERE pg_inherits.inhparent = CAST(:table_name AS regclass)
    AND pg_inherits.inhdetachpending
