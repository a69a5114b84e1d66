-- The partitions of the tables by night, with the first night that they hold and the first after it.
-- Without a first night, a partition holds all nights before.
SELECT
    parent.relname AS table_name,
    partition.relname AS name,
    CAST(substring(bound.text FROM 'FROM \(''([^'']+)''\)') AS date) AS first_night,
    CAST(substring(bound.text FROM 'TO \(''([^'']+)''\)') AS date) AS next_night,
    pg_inherits.inhdetachpending AS is_pending,
    CAST(greatest(partition.reltuples, 0) AS bigint) AS rows,
    pg_total_relation_size(partition.oid) AS bytes
FROM pg_class AS parent
JOIN pg_inherits ON pg_inherits.inhparent = parent.oid
JOIN pg_class AS partition ON partition.oid = pg_inherits.inhrelid
CROSS JOIN LATERAL (
    SELECT pg_get_expr(partition.relpartbound, partition.oid) AS text
) AS bound
WHERE parent.relnamespace = 'nightscore'::regnamespace
    AND parent.relkind = 'p'
    AND parent.relname IN ('image', 'manifest', 'prediction', 'rejection')
    AND bound.text LIKE 'FOR VALUES FROM (%'
ORDER BY partition.relname
