-- Settings that only an administrator of the cluster can make, in the database of the tables. The
-- local stack runs this file at every start; docs/production.md says when to run it elsewhere. It is
-- safe to repeat.
DO $$
DECLARE
    function regprocedure;
BEGIN
    -- Advisory locks and large objects need no privilege on any table. With an advisory lock an
    -- analyst could block the merge of a night's results; with large objects, fill the disk.
    FOR function IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace
            AND (proname ~ '^pg_(try_)?advisory_' OR proname IN ('lo_creat', 'lo_create', 'lo_from_bytea'))
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
        IF function::text LIKE '%advisory%' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO nightscore_owner, nightscore_writer', function);
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nightscore_maintainer') THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO nightscore_maintainer', function);
            END IF;
        END IF;
    END LOOP;
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
END
$$;

-- A query of an analyst must not take disk space, connections or locks from the scoring of a night.
-- A session of the analyst can raise the two timeouts, but not the other limits.
ALTER ROLE nightscore_analyst CONNECTION LIMIT 20;
ALTER ROLE nightscore_analyst SET temp_file_limit = '4GB';
ALTER ROLE nightscore_analyst SET statement_timeout = '10min';
ALTER ROLE nightscore_analyst SET idle_in_transaction_session_timeout = '10min';
