"""Metrics for Prometheus, read from Postgres: tasks are too short to be scraped."""
