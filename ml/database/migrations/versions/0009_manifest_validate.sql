-- Checks the rows that were there before (0009_manifest_bound.sql), while others read and write.
DO $$
DECLARE
    bound text;
BEGIN
    SELECT conname INTO bound
    FROM pg_constraint
    WHERE conrelid = 'nightscore.manifest'::regclass
        AND conname LIKE 'manifest\_before\_%'
        AND NOT convalidated;
    IF FOUND THEN
        EXECUTE format('ALTER TABLE nightscore.manifest VALIDATE CONSTRAINT %I', bound);
    END IF;
END
$$;
