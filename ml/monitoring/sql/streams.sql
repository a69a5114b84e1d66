-- One row per stream with a run of the last nights; times are in seconds since 1970.
SELECT
    stream,
    extract(epoch FROM min(started_at)) AS first_run,
    extract(epoch FROM max(finished_at) FILTER (WHERE status = 'finished')) AS last_finished,
    extract(epoch FROM max(night) FILTER (WHERE status = 'finished')) AS newest_night,
    count(*) FILTER (WHERE status = 'open') AS open_runs,
    extract(epoch FROM min(started_at) FILTER (WHERE status = 'open')) AS oldest_open
FROM reporting.nightly_summary
WHERE night > current_date - CAST(:nights AS integer)
GROUP BY stream
