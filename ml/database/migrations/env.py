"""Alembic's entry point: migrate with the connection that `ml.database.migrate` passes."""

from alembic import context

from ml.database.tables import SCHEMA, Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
    # So that one may build indexes outside of a transaction (ml.database.migrations.indexes).
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
