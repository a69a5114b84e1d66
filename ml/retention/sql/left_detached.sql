-- Tables that a deletion has detached and not dropped before it was interrupted. Whoever detaches a
-- partition by hand, to keep it elsewhere, has not begun a deletion here.
SELECT
    pg_class.relname AS name,
    begun.kind,
    begun.stream,
    begun.night,
    CAST(greatest(pg_class.reltuples, 0) AS bigint) AS rows,
    pg_total_relation_size(pg_class.oid) AS bytes
FROM pg_class
CROSS JOIN LATERAL (
    SELECT maintenance.kind, maintenance.stream, maintenance.night
    FROM nightscore.maintenance
    WHERE (maintenance.finished_at IS NULL OR maintenance.error IS NOT NULL)
        AND pg_class.relname = ANY (string_to_array(maintenance.name, ', '))
    ORDER BY maintenance.maintenance_id DESC
    LIMIT 1
) AS begun
WHERE pg_class.relnamespace = 'nightscore'::regnamespace
    AND pg_class.relkind = 'r'
    AND NOT pg_class.relispartition
    AND pg_class.relname ~ '^((image|manifest|prediction|rejection)_|manifest_before_)[0-9]{8}$'
ORDER BY pg_class.relname
