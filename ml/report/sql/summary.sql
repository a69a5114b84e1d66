SELECT * FROM reporting.nightly_summary WHERE run_id = :run_id
