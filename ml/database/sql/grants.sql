-- The privileges of the roles: those that the statements of `ml` need, and no more. In an
-- installation with other names of roles, the administrator grants the privileges listed here.
-- Privileges on a partitioned table are granted on the whole table, and none on its partitions.
DO $$
DECLARE
    relation regclass;
BEGIN
    REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA reporting FROM PUBLIC;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nightscore_writer') THEN
        -- Earlier versions granted more.
        FOR relation IN
            SELECT oid FROM pg_class
            WHERE relnamespace = 'nightscore'::regnamespace
                AND relkind IN ('r', 'p')
                AND EXISTS (SELECT FROM aclexplode(relacl) WHERE grantee = 'nightscore_writer'::regrole)
        LOOP
            EXECUTE format('REVOKE ALL ON TABLE %s FROM nightscore_writer', relation);
        END LOOP;
        REVOKE ALL ON ALL SEQUENCES IN SCHEMA nightscore FROM nightscore_writer;

        GRANT USAGE ON SCHEMA nightscore, reporting TO nightscore_writer;
        GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO nightscore_writer;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA reporting TO nightscore_writer;
        GRANT SELECT ON nightscore.alembic_version TO nightscore_writer;
        -- Rows are inserted and never changed.
        GRANT SELECT, INSERT ON
            nightscore.image,
            nightscore.manifest,
            nightscore.prediction,
            nightscore.scoring_run_model,
            nightscore.promotion,
            nightscore.camera
            TO nightscore_writer;
        -- `nightscore cameras` assigns cameras to older images.
        GRANT UPDATE (camera_id) ON nightscore.image TO nightscore_writer;
        -- Triggers keep them.
        GRANT SELECT ON nightscore.class_sum, nightscore.score_sum, nightscore.rejection_sum
            TO nightscore_writer;
        -- Rows are inserted and updated.
        GRANT SELECT, INSERT, UPDATE ON
            nightscore.scoring_run,
            nightscore.shard,
            nightscore.model_version,
            nightscore.model_alias
            TO nightscore_writer;
        -- A rejected image that is scored later is no longer rejected.
        GRANT SELECT, INSERT, UPDATE, DELETE ON nightscore.rejection TO nightscore_writer;
        -- Of the audit log, only the state of a change is updated.
        IF EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = 'nightscore.promotion'::regclass AND attname = 'state' AND NOT attisdropped
        ) THEN
            GRANT UPDATE (state) ON nightscore.promotion TO nightscore_writer;
        END IF;
        GRANT EXECUTE ON FUNCTION
            nightscore.ensure_night(date),
            nightscore.analyze_night(date, text[]),
            nightscore.sum_night(text, date)
            TO nightscore_writer;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nightscore_analyst') THEN
        GRANT USAGE ON SCHEMA reporting TO nightscore_analyst;
        GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO nightscore_analyst;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA reporting TO nightscore_analyst;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nightscore_maintainer') THEN
        -- maintainer.sql also makes it the owner of the tables by night.
        GRANT USAGE ON SCHEMA nightscore, reporting TO nightscore_maintainer;
        GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO nightscore_maintainer;
        -- What it has to know to decide.
        GRANT SELECT ON
            nightscore.alembic_version,
            nightscore.scoring_run,
            nightscore.scoring_run_model,
            nightscore.model_version,
            nightscore.model_alias
            TO nightscore_maintainer;
        -- Which versions the audit names; not why and by whom.
        IF EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = 'nightscore.promotion'::regclass AND attname = 'state' AND NOT attisdropped
        ) THEN
            GRANT SELECT (model, version, replaced, promoted_at, state)
                ON nightscore.promotion TO nightscore_maintainer;
        END IF;
        -- Of a version, that it is deleted.
        IF EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = 'nightscore.model_version'::regclass AND attname = 'deleted_at'
                AND NOT attisdropped
        ) THEN
            GRANT UPDATE (deleted_at) ON nightscore.model_version TO nightscore_maintainer;
        END IF;
        GRANT SELECT, INSERT ON nightscore.maintenance TO nightscore_maintainer;
        -- What became of a deletion. What was to be deleted, and why, stays as it was written.
        GRANT UPDATE (finished_at, error) ON nightscore.maintenance TO nightscore_maintainer;
        GRANT EXECUTE ON FUNCTION nightscore.ensure_night(date), nightscore.drop_detached(text)
            TO nightscore_maintainer;
    END IF;
END
$$;
