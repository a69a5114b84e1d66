-- Says of a manifest with rows that all of them are of nights before a date, which nobody reaches while
-- the migration runs. The name of the constraint holds the date, so that an interrupted migration
-- goes on with it. New rows are checked from now on; the old ones by VALIDATE CONSTRAINT, which locks
-- out neither readers nor writers.
DO $$
DECLARE
    before date;
    bound text;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'nightscore.manifest'::regclass) = 'p'
        -- In a new database, where no view depends on the table, it goes.
        OR (
            to_regclass('reporting.missing_images') IS NULL
            AND NOT EXISTS (SELECT FROM nightscore.manifest)
        )
        OR EXISTS (
            SELECT FROM pg_constraint
            WHERE conrelid = 'nightscore.manifest'::regclass AND conname LIKE 'manifest\_before\_%'
        )
    THEN
        RETURN;
    END IF;
    SELECT greatest(max(image.night), current_date) + 8 INTO before FROM nightscore.image;
    bound := 'manifest_before_' || to_char(before, 'YYYYMMDD');
    EXECUTE format(
        'ALTER TABLE nightscore.manifest ADD CONSTRAINT %I CHECK (night < %L) NOT VALID',
        bound, before
    );
END
$$;
