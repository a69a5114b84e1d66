-- Divides the manifest by night, as images and results are: an old night is dropped at once. The table
-- as it was becomes the partition of all nights before a date (0009_manifest_bound.sql), as it is:
-- no row moves. In a new database, which has no views yet, it is empty and goes.
DO $$
DECLARE
    old_rows text;
    constraint_name text;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'nightscore.manifest'::regclass) = 'p' THEN
        RETURN;
    END IF;
    -- A reference to the run would make each new partition lock out all writers of scoring_run.
    ALTER TABLE nightscore.manifest DROP CONSTRAINT IF EXISTS manifest_run_id_fkey;
    SELECT conname INTO old_rows
    FROM pg_constraint
    WHERE conrelid = 'nightscore.manifest'::regclass AND conname LIKE 'manifest\_before\_%';
    IF old_rows IS NULL THEN
        DROP TABLE nightscore.manifest;
    ELSE
        -- Postgres 18 has a constraint for each NOT NULL, too.
        FOR constraint_name IN
            SELECT conname FROM pg_constraint
            WHERE conrelid = 'nightscore.manifest'::regclass AND contype IN ('p', 'n')
        LOOP
            EXECUTE format(
                'ALTER TABLE nightscore.manifest RENAME CONSTRAINT %I TO %I',
                constraint_name, replace(constraint_name, 'manifest', 'manifest_before')
            );
        END LOOP;
        ALTER INDEX nightscore.manifest_by_shard RENAME TO manifest_before_by_shard;
        EXECUTE format('ALTER TABLE nightscore.manifest RENAME TO %I', old_rows);
    END IF;
    CREATE TABLE nightscore.manifest (
        run_id uuid NOT NULL,
        night date NOT NULL,
        image_id bigint NOT NULL,
        shard integer NOT NULL,
        PRIMARY KEY (run_id, night, image_id)
    ) PARTITION BY RANGE (night);
    CREATE INDEX manifest_by_shard ON nightscore.manifest (run_id, shard);
    IF old_rows IS NOT NULL THEN
        EXECUTE format(
            'ALTER TABLE nightscore.manifest ATTACH PARTITION nightscore.%I FOR VALUES FROM (MINVALUE) TO (%L)',
            old_rows, to_date(right(old_rows, 8), 'YYYYMMDD')
        );
        EXECUTE format('ALTER TABLE nightscore.%I DROP CONSTRAINT %I', old_rows, old_rows);
    END IF;
    -- The processes that are at work go on before the grants of this release are made.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nightscore_writer') THEN
        GRANT SELECT, INSERT ON nightscore.manifest TO nightscore_writer;
    END IF;
END
$$;

-- Makes the partitions of a night. The writer may not create tables; it may call this.
-- A partition is made apart and then attached, because ATTACH lets readers and writers go on
-- while CREATE TABLE ... PARTITION OF would wait for all of them.
CREATE OR REPLACE FUNCTION nightscore.ensure_night(night date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    part text;
    is_attached boolean;
BEGIN
    FOREACH parent IN ARRAY ARRAY['image', 'manifest', 'prediction', 'rejection'] LOOP
        part := format('%s_%s', parent, to_char(night, 'YYYYMMDD'));
        -- Asked of the catalogue itself: to_regclass may answer from a cache that has not
        -- heard of what another session made while this one waited.
        SELECT relispartition AND NOT coalesce(inhdetachpending, false) INTO is_attached
        FROM pg_class
        LEFT JOIN pg_inherits ON inhrelid = oid
        WHERE relname = part AND relnamespace = 'nightscore'::regnamespace;
        CONTINUE WHEN is_attached;
        -- A database of an earlier release has the rows of its nights in one partition.
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_class
            WHERE relnamespace = 'nightscore'::regnamespace
                AND relkind = 'r'
                AND relname ~ format('^%s_before_\d{8}$', parent)
                AND night < to_date(right(relname, 8), 'YYYYMMDD')
        );
        PERFORM pg_advisory_xact_lock(hashtext('nightscore.ensure_night'));
        SELECT relispartition AND NOT coalesce(inhdetachpending, false) INTO is_attached
        FROM pg_class
        LEFT JOIN pg_inherits ON inhrelid = oid
        WHERE relname = part AND relnamespace = 'nightscore'::regnamespace;
        CONTINUE WHEN is_attached;
        IF NOT is_attached THEN
            RAISE EXCEPTION 'The partition nightscore.% is being deleted.', part
                USING HINT = 'The next run of the DAG maintain, or `nightscore prune --delete`, ends that.';
        END IF;
        EXECUTE format(
            'CREATE TABLE nightscore.%I (LIKE nightscore.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
            part, parent);
        EXECUTE format(
            'ALTER TABLE nightscore.%I ATTACH PARTITION nightscore.%I FOR VALUES FROM (%L) TO (%L)',
            parent, part, night, night + 1);
    END LOOP;
END
$$;

-- Gathers statistics of a night's rows, right after many of them have been stored. Until autovacuum
-- comes round, Postgres knows nothing of them and plans joins that take a thousand times as long.
CREATE OR REPLACE FUNCTION nightscore.analyze_night(night date, parents text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part name;
BEGIN
    FOR part IN
        SELECT child.relname
        FROM pg_inherits
        JOIN pg_class AS parent ON parent.oid = inhparent AND parent.relkind = 'p'
        JOIN pg_class AS child ON child.oid = inhrelid
        WHERE parent.relnamespace = 'nightscore'::regnamespace
            AND parent.relname = ANY (parents)
            AND child.relname = parent.relname || '_' || to_char(analyze_night.night, 'YYYYMMDD')
        ORDER BY 1
    LOOP
        EXECUTE format('ANALYZE nightscore.%I', part);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nightscore.analyze_night(date, text[]) FROM PUBLIC;
