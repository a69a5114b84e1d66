"""Scoring a night: open run, discover, plan shards, score shards, reconcile, report."""

# How often a shard is tried, on the command line and in Airflow, before its run fails and names its
# images. It is here because a DAG file reads it when it is parsed, and must import nothing else.
SHARD_ATTEMPTS = 3
