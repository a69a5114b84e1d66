-- What only an administrator of the cluster can set, in the database of the tables. The local stack
-- does it at every start; docs/production.md says when to run it elsewhere. It can be repeated.
DO $$
DECLARE
    function regprocedure;
BEGIN
    -- An advisory lock or a large object needs no privilege on any table: with the first an analyst
    -- could keep a night's results from being merged, with the second fill the disk.
    FOR function IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace
            AND (proname ~ '^pg_(try_)?advisory_' OR proname IN ('lo_creat', 'lo_create', 'lo_from_bytea'))
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
        IF function::text LIKE '%advisory%' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO nightscore_owner, nightscore_writer', function);
        END IF;
    END LOOP;
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
END
$$;

-- An analyst's query must not cost the night its disk, its connections or its locks. The limits of
-- time are defaults that a session can lift; the others are not.
ALTER ROLE nightscore_analyst CONNECTION LIMIT 20;
ALTER ROLE nightscore_analyst SET temp_file_limit = '4GB';
ALTER ROLE nightscore_analyst SET statement_timeout = '10min';
ALTER ROLE nightscore_analyst SET idle_in_transaction_session_timeout = '10min';
