-- Bytes per row, with indexes, of the newest partitions that Postgres has statistics of and that are
-- large enough for their pages to say something.
WITH partitions AS (
    SELECT
        parent.relname AS name,
        pg_total_relation_size(child.oid) AS bytes,
        child.reltuples AS rows,
        row_number() OVER (PARTITION BY parent.relname ORDER BY child.relname DESC) AS newest
    FROM pg_class AS parent
    JOIN pg_inherits ON pg_inherits.inhparent = parent.oid
    JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
    WHERE parent.relnamespace = to_regnamespace('nightscore')
        AND parent.relname IN ('image', 'prediction', 'rejection', 'manifest')
        AND parent.relkind = 'p'
        AND child.reltuples >= :least_rows
)
SELECT name, (sum(bytes) / sum(rows))::double precision AS bytes_per_row
FROM partitions
WHERE newest <= :most
GROUP BY name
