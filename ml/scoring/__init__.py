"""Scoring a night: open run, discover, plan shards, score shards, reconcile, report."""

# Of a shard, here and in Airflow; then the run fails and names its images. It stands here because a
# DAG file reads it when it is parsed, and loads nothing else for it.
ATTEMPTS = 3
