"""Postgres: connections, tables, views, migrations and bulk loading."""
