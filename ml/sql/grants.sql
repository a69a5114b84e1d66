-- What the roles may do. A role that does not exist (an installation with other names) is left
-- to the administrator; docs/production.md says what it needs.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nightscore_writer') THEN
        GRANT USAGE ON SCHEMA nightscore, reporting TO nightscore_writer;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA nightscore TO nightscore_writer;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA nightscore TO nightscore_writer;
        GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO nightscore_writer;
        GRANT EXECUTE ON FUNCTION nightscore.ensure_night(date) TO nightscore_writer;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nightscore_analyst') THEN
        GRANT USAGE ON SCHEMA reporting TO nightscore_analyst;
        GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO nightscore_analyst;
    END IF;
END
$$;
