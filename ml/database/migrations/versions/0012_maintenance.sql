-- What was deleted because its limit had passed: a row is written before, and finished after.
CREATE TABLE nightscore.maintenance (
    maintenance_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    name text NOT NULL,
    stream text,
    night date,
    items bigint NOT NULL,
    bytes bigint NOT NULL,
    reason text NOT NULL,
    deleted_by text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    error text
);
-- What was begun and may be half done.
CREATE INDEX maintenance_unfinished ON nightscore.maintenance (night)
    WHERE finished_at IS NULL OR error IS NOT NULL;

-- Drops what was a partition of a night. The maintainer may detach partitions, but owns none.
CREATE FUNCTION nightscore.drop_detached(part text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation pg_class;
BEGIN
    IF part !~ '^((image|manifest|prediction|rejection)_|manifest_before_)[0-9]{8}$' THEN
        RAISE EXCEPTION 'nightscore.% is no night of a table', part;
    END IF;
    SELECT * INTO relation FROM pg_class
    WHERE relname = part AND relnamespace = 'nightscore'::regnamespace AND relkind = 'r';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF relation.relispartition THEN
        RAISE EXCEPTION 'nightscore.% is attached', part;
    END IF;
    EXECUTE format('DROP TABLE nightscore.%I', part);
END
$$;
REVOKE ALL ON FUNCTION nightscore.drop_detached(text) FROM PUBLIC;
