SELECT CAST(revision AS integer) AS revision, CAST(:needed AS integer) AS needed
FROM reporting.schema_revision
