CREATE OR REPLACE VIEW reporting.schema_revision AS
SELECT version_num AS revision FROM nightscore.alembic_version;

COMMENT ON VIEW reporting.schema_revision IS 'One row: how far the tables are migrated.';
COMMENT ON COLUMN reporting.schema_revision.revision IS 'The newest migration that has run, such as 0006.';
