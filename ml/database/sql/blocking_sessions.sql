-- The sessions that a session waits for. When the query of another role began, Postgres tells only
-- members of pg_read_all_stats.
SELECT DISTINCT
    activity.pid,
    activity.usename AS role,
    activity.application_name AS application,
    activity.query_start AS started_at
FROM unnest(pg_blocking_pids(:pid)) AS blocking (pid)
JOIN pg_stat_activity AS activity ON activity.pid = blocking.pid
ORDER BY activity.pid
