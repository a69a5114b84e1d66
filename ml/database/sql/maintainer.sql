-- Hands the tables by night over to the maintainer: only the owner of a partitioned table may detach a
-- partition, and CONCURRENTLY not in a function that somebody else could call. The partitions stay the
-- owner's, whose function drops them. The owner of the schema is a member of the maintainer, so that it
-- can still change these tables. Does nothing where that is done, or where there is no such role.
DO $$
DECLARE
    relation regclass;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nightscore_maintainer')
        OR NOT pg_has_role('nightscore_maintainer', 'USAGE') THEN
        RETURN;
    END IF;
    FOR relation IN
        SELECT oid FROM pg_class
        WHERE relnamespace = 'nightscore'::regnamespace
            AND relkind = 'p'
            AND relname IN ('image', 'manifest', 'prediction', 'rejection')
            AND relowner <> 'nightscore_maintainer'::regrole
        ORDER BY relname
    LOOP
        -- Whoever becomes an owner needs this right at that moment, and not afterwards.
        GRANT CREATE ON SCHEMA nightscore TO nightscore_maintainer;
        EXECUTE format('ALTER TABLE %s OWNER TO nightscore_maintainer', relation);
        REVOKE CREATE ON SCHEMA nightscore FROM nightscore_maintainer;
    END LOOP;
END
$$;
