-- Tables of Nightscore. Rows of images and results are partitioned by night, so that an old
-- night can be dropped at once and a query for one night reads one partition.

CREATE TABLE nightscore.scoring_run (
    run_id uuid PRIMARY KEY,
    trigger text NOT NULL UNIQUE,
    stream text NOT NULL,
    night date NOT NULL,
    status text NOT NULL CHECK (status IN ('open', 'finished', 'failed')),
    lookback_from date NOT NULL,
    max_rejected_share real NOT NULL,
    shard_size integer NOT NULL CHECK (shard_size > 0),
    opened_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    discovered bigint,
    scored bigint,
    rejected bigint,
    anomalies bigint,
    synthetic boolean NOT NULL DEFAULT false,
    error text,
    report_uri text
);
CREATE INDEX scoring_run_by_night ON nightscore.scoring_run (stream, night);

-- The versions a run was opened with; they never change afterwards.
CREATE TABLE nightscore.scoring_run_model (
    run_id uuid NOT NULL REFERENCES nightscore.scoring_run,
    model text NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (run_id, model)
);

CREATE TABLE nightscore.shard (
    run_id uuid NOT NULL REFERENCES nightscore.scoring_run,
    number integer NOT NULL,
    images integer NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (run_id, number)
);

CREATE TABLE nightscore.image (
    night date NOT NULL,
    image_id bigint GENERATED ALWAYS AS IDENTITY,
    stream text NOT NULL,
    uri text NOT NULL,
    etag text NOT NULL,
    bytes bigint NOT NULL,
    modified timestamptz NOT NULL,
    discovered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (night, image_id),
    CONSTRAINT image_content UNIQUE (night, stream, uri, etag)
) PARTITION BY RANGE (night);

-- What a run has to score: the images that its versions had not settled when it looked.
CREATE TABLE nightscore.manifest (
    run_id uuid NOT NULL REFERENCES nightscore.scoring_run,
    night date NOT NULL,
    image_id bigint NOT NULL,
    shard integer NOT NULL,
    PRIMARY KEY (run_id, night, image_id)
);
CREATE INDEX manifest_by_shard ON nightscore.manifest (run_id, shard);

CREATE TABLE nightscore.prediction (
    night date NOT NULL,
    image_id bigint NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    run_id uuid NOT NULL,
    predicted_class text NOT NULL,
    confidence real,
    score real,
    threshold real,
    flagged boolean NOT NULL DEFAULT false,
    heatmap_uri text,
    scored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (night, image_id, model, version)
) PARTITION BY RANGE (night);
CREATE INDEX prediction_flagged ON nightscore.prediction (night, model) WHERE flagged;

CREATE TABLE nightscore.rejection (
    night date NOT NULL,
    image_id bigint NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    run_id uuid NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL DEFAULT '',
    rejected_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (night, image_id, model, version)
) PARTITION BY RANGE (night);

-- What the registry (MLflow) says of a version, kept here for SQL and for the drift reference.
CREATE TABLE nightscore.model_version (
    model text NOT NULL,
    version integer NOT NULL,
    task text NOT NULL CHECK (task IN ('classification', 'anomaly')),
    mlflow_run_id text NOT NULL,
    program_sha256 text NOT NULL,
    snapshot_uri text NOT NULL,
    metrics jsonb NOT NULL,
    threshold double precision,
    classes text[] NOT NULL,
    reference_edges double precision[] NOT NULL,
    reference_shares double precision[] NOT NULL,
    synthetic boolean NOT NULL,
    gate_passed boolean NOT NULL,
    gate_reason text NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, version)
);

CREATE TABLE nightscore.model_alias (
    model text NOT NULL,
    alias text NOT NULL CHECK (alias IN ('champion', 'challenger', 'previous')),
    version integer NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, alias)
);

-- Every change of champion, who made it and why.
CREATE TABLE nightscore.promotion (
    promotion_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model text NOT NULL,
    version integer NOT NULL,
    replaced integer,
    action text NOT NULL CHECK (action IN ('promote', 'rollback')),
    reason text NOT NULL,
    promoted_by text NOT NULL,
    promoted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX promotion_by_model ON nightscore.promotion (model, version);

-- Makes the partitions of a night. The writer may not create tables; it may call this.
-- A partition is made apart and then attached, because ATTACH lets readers and writers go on
-- while CREATE TABLE ... PARTITION OF would wait for all of them.
CREATE FUNCTION nightscore.ensure_night(night date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    part text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['image', 'prediction', 'rejection'] LOOP
        part := format('%s_%s', parent, to_char(night, 'YYYYMMDD'));
        IF to_regclass(format('nightscore.%I', part)) IS NULL THEN
            PERFORM pg_advisory_xact_lock(hashtext('nightscore.ensure_night'));
            -- Asked of the catalogue itself: to_regclass may answer from a cache that has not
            -- heard of what another session made while this one waited.
            IF NOT EXISTS (
                SELECT FROM pg_class WHERE relname = part AND relnamespace = 'nightscore'::regnamespace
            ) THEN
                EXECUTE format(
                    'CREATE TABLE nightscore.%I (LIKE nightscore.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                    part, parent);
                EXECUTE format(
                    'ALTER TABLE nightscore.%I ATTACH PARTITION nightscore.%I FOR VALUES FROM (%L) TO (%L)',
                    parent, part, night, night + 1);
            END IF;
        END IF;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION nightscore.ensure_night(date) FROM PUBLIC;
