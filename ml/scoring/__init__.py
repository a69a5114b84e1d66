"""Scoring a night: open run, discover, plan shards, score shards, reconcile, report."""
