-- How many locks the server has room for, and how many relations may be locked at once: a backup locks
-- each table, and a statement that names no night each partition and each index.
SELECT
    current_setting('max_locks_per_transaction')::integer AS per_transaction,
    current_setting('max_connections')::integer
        + current_setting('max_prepared_transactions')::integer AS transactions,
    count(*) FILTER (WHERE relkind IN ('r', 'p')) AS tables,
    count(*) AS relations,
    count(*) FILTER (WHERE relispartition AND relkind = 'r' AND relname LIKE 'image\_%') AS nights
FROM pg_class
WHERE relnamespace = to_regnamespace('nightscore')
