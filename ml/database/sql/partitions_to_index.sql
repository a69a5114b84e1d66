-- The partitions that a partitioned index has no index on yet, with the statements that build one and
-- attach it. Postgres gives the definition, so a migration says it once.
SELECT
    partition.relname AS partition,
    format('DROP INDEX CONCURRENTLY IF EXISTS %I.%I', index.schema, child.name) AS drop_statement,
    NOT coalesce(existing.indisvalid, true) AS is_broken,
    format(
        'CREATE %sINDEX CONCURRENTLY IF NOT EXISTS %I ON %I.%I%s',
        CASE WHEN index.indisunique THEN 'UNIQUE ' END,
        child.name, index.schema, partition.relname, index.definition
    ) AS create_statement,
    format(
        'ALTER INDEX %I.%I ATTACH PARTITION %I.%I',
        index.schema, index.name, index.schema, child.name
    ) AS attach_statement
FROM (
    SELECT
        pg_index.indexrelid,
        pg_index.indrelid,
        pg_index.indisunique,
        pg_class.relname AS name,
        pg_class.relnamespace,
        pg_class.relnamespace::regnamespace::name AS schema,
        substring(pg_get_indexdef(pg_index.indexrelid) FROM ' USING .*') AS definition
    FROM pg_index
    JOIN pg_class ON pg_class.oid = pg_index.indexrelid
    WHERE pg_index.indexrelid = CAST(:index AS regclass)
) AS index
JOIN pg_inherits AS tables ON tables.inhparent = index.indrelid AND NOT tables.inhdetachpending
JOIN pg_class AS partition ON partition.oid = tables.inhrelid
CROSS JOIN LATERAL (
    SELECT CAST(format('%s_%s', partition.relname, index.name) AS name) AS name
) AS child
LEFT JOIN pg_class AS leftover
    ON leftover.relname = child.name AND leftover.relnamespace = index.relnamespace
LEFT JOIN pg_index AS existing ON existing.indexrelid = leftover.oid
WHERE NOT EXISTS (
    SELECT
    FROM pg_inherits AS indexes
    JOIN pg_index AS attached ON attached.indexrelid = indexes.inhrelid
    WHERE indexes.inhparent = index.indexrelid AND attached.indrelid = partition.oid
)
ORDER BY partition.relname
