-- What the results of a run come to, by night, version and camera, so that a view or a report of many
-- nights reads a few hundred rows per night and no image. Camera 0 stands for none.
--
-- Triggers add to the sums in the transaction that writes the results, whichever release writes them.
-- So they agree with the rows at any moment, also for a run that was killed.
CREATE TABLE nightscore.class_sum (
    night date NOT NULL,
    run_id uuid NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    camera_id integer NOT NULL,
    predicted_class text NOT NULL,
    images bigint NOT NULL,
    flagged bigint NOT NULL,
    review bigint NOT NULL,
    confidence double precision,
    PRIMARY KEY (night, run_id, model, version, camera_id, predicted_class)
);
-- A histogram of the scores, or of a classifier's confidence. The bins are those of the version's
-- held-out images (model_version.reference_edges), counted from 0.
CREATE TABLE nightscore.score_sum (
    night date NOT NULL,
    run_id uuid NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    camera_id integer NOT NULL,
    bin integer NOT NULL,
    images bigint NOT NULL,
    PRIMARY KEY (night, run_id, model, version, camera_id, bin)
);
CREATE TABLE nightscore.rejection_sum (
    night date NOT NULL,
    run_id uuid NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    camera_id integer NOT NULL,
    reason text NOT NULL,
    images bigint NOT NULL,
    PRIMARY KEY (night, run_id, model, version, camera_id, reason)
);

-- The plans of these functions are made for the night at hand, so that they read its partition only.
CREATE FUNCTION nightscore.add_predictions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    with_cameras boolean := EXISTS (SELECT FROM nightscore.camera);
    this_night date;
    -- Without cameras the images need not be looked up: a night that has no partition.
    image_night date;
BEGIN
    FOR this_night IN SELECT DISTINCT changed.night FROM changed ORDER BY 1 LOOP
        image_night := CASE WHEN with_cameras THEN this_night ELSE '-infinity' END;
        WITH result AS MATERIALIZED (
            SELECT
                changed.run_id,
                changed.model,
                changed.version,
                coalesce(image.camera_id, 0) AS camera_id,
                changed.predicted_class,
                changed.flagged,
                changed.review,
                changed.confidence::double precision AS confidence,
                width_bucket(
                    coalesce(changed.score, changed.confidence)::double precision,
                    version.reference_edges
                ) AS bin
            FROM changed
            LEFT JOIN nightscore.image
                ON image.night = image_night AND image.image_id = changed.image_id
            LEFT JOIN nightscore.model_version AS version USING (model, version)
            WHERE changed.night = this_night
        ),
        classes AS (
            INSERT INTO nightscore.class_sum AS total
            SELECT
                this_night, run_id, model, version, camera_id, predicted_class,
                count(*),
                count(*) FILTER (WHERE flagged),
                count(*) FILTER (WHERE review),
                sum(confidence)
            FROM result
            GROUP BY run_id, model, version, camera_id, predicted_class
            ORDER BY run_id, model, version, camera_id, predicted_class
            ON CONFLICT (night, run_id, model, version, camera_id, predicted_class) DO UPDATE
            SET images = total.images + excluded.images,
                flagged = total.flagged + excluded.flagged,
                review = total.review + excluded.review,
                confidence = total.confidence + excluded.confidence
        )
        INSERT INTO nightscore.score_sum AS total
        SELECT this_night, run_id, model, version, camera_id, bin, count(*)
        FROM result
        WHERE bin IS NOT NULL
        GROUP BY run_id, model, version, camera_id, bin
        ORDER BY run_id, model, version, camera_id, bin
        ON CONFLICT (night, run_id, model, version, camera_id, bin) DO UPDATE
        SET images = total.images + excluded.images;
    END LOOP;
    RETURN NULL;
END
$$;

-- Its argument is 1 for rows that are added, and -1 for rows that are removed.
CREATE FUNCTION nightscore.add_rejections() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    sign bigint := TG_ARGV[0];
    with_cameras boolean := EXISTS (SELECT FROM nightscore.camera);
    this_night date;
    image_night date;
BEGIN
    FOR this_night IN SELECT DISTINCT changed.night FROM changed ORDER BY 1 LOOP
        image_night := CASE WHEN with_cameras THEN this_night ELSE '-infinity' END;
        INSERT INTO nightscore.rejection_sum AS total
        SELECT
            this_night, changed.run_id, changed.model, changed.version,
            coalesce(image.camera_id, 0), changed.reason,
            sign * count(*)
        FROM changed
        LEFT JOIN nightscore.image
            ON image.night = image_night AND image.image_id = changed.image_id
        WHERE changed.night = this_night
        GROUP BY 2, 3, 4, 5, 6
        ORDER BY 2, 3, 4, 5, 6
        ON CONFLICT (night, run_id, model, version, camera_id, reason) DO UPDATE
        SET images = total.images + excluded.images;
    END LOOP;
    RETURN NULL;
END
$$;

-- A session that deletes rows since their time is over says so (nightscore.retention), and their sums
-- stay.
CREATE TRIGGER prediction_inserted AFTER INSERT ON nightscore.prediction
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION nightscore.add_predictions();
CREATE TRIGGER rejection_inserted AFTER INSERT ON nightscore.rejection
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION nightscore.add_rejections('1');
CREATE TRIGGER rejection_updated_from AFTER UPDATE ON nightscore.rejection
    REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION nightscore.add_rejections('-1');
CREATE TRIGGER rejection_updated_to AFTER UPDATE ON nightscore.rejection
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION nightscore.add_rejections('1');
CREATE TRIGGER rejection_deleted AFTER DELETE ON nightscore.rejection
    REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT WHEN (coalesce(current_setting('nightscore.retention', true), '') <> 'on')
        EXECUTE FUNCTION nightscore.add_rejections('-1');

-- Computes the sums of a stream's night again from its rows. It needs one snapshot (REPEATABLE READ)
-- and holds up nobody who stores results of the night. After a serialization failure or a unique
-- violation, which mean that results came in between, the caller repeats it (ml.database.sums). Returns whether it has done so: the sums of a night of which rows were deleted
-- since their time is over stay as they are.
CREATE FUNCTION nightscore.sum_night(of_stream text, of_night date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    runs uuid[];
    classes nightscore.class_sum[];
    scores nightscore.score_sum[];
    rejections nightscore.rejection_sum[];
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('repeatable read', 'serializable') THEN
        RAISE EXCEPTION 'nightscore.sum_night needs a transaction with REPEATABLE READ';
    END IF;
    -- Computed first and written at the end, so that its rows are locked only for a moment.
    SELECT array_agg(row) INTO classes
    FROM (
        SELECT
            of_night, prediction.run_id, prediction.model, prediction.version,
            coalesce(image.camera_id, 0), prediction.predicted_class,
            count(*),
            count(*) FILTER (WHERE prediction.flagged),
            count(*) FILTER (WHERE prediction.review),
            sum(prediction.confidence::double precision)
        FROM nightscore.prediction
        JOIN nightscore.image
            ON image.night = of_night AND image.image_id = prediction.image_id
        WHERE prediction.night = of_night AND image.stream = of_stream
        GROUP BY 2, 3, 4, 5, 6
    ) AS row;
    SELECT array_agg(row) INTO scores
    FROM (
        SELECT
            of_night, prediction.run_id, prediction.model, prediction.version,
            coalesce(image.camera_id, 0), bin.bin, count(*)
        FROM nightscore.prediction
        JOIN nightscore.image
            ON image.night = of_night AND image.image_id = prediction.image_id
        JOIN nightscore.model_version AS version USING (model, version)
        CROSS JOIN LATERAL (
            SELECT width_bucket(
                coalesce(prediction.score, prediction.confidence)::double precision,
                version.reference_edges
            )
        ) AS bin (bin)
        WHERE prediction.night = of_night AND image.stream = of_stream AND bin.bin IS NOT NULL
        GROUP BY 2, 3, 4, 5, 6
    ) AS row;
    SELECT array_agg(row) INTO rejections
    FROM (
        SELECT
            of_night, rejection.run_id, rejection.model, rejection.version,
            coalesce(image.camera_id, 0), rejection.reason, count(*)
        FROM nightscore.rejection
        JOIN nightscore.image
            ON image.night = of_night AND image.image_id = rejection.image_id
        WHERE rejection.night = of_night AND image.stream = of_stream
        GROUP BY 2, 3, 4, 5, 6
    ) AS row;
    SELECT array_agg(run_id) INTO runs FROM nightscore.scoring_run WHERE stream = of_stream;
    IF (SELECT coalesce(sum(images), 0) FROM unnest(classes)) < (
            SELECT coalesce(sum(images), 0) FROM nightscore.class_sum
            WHERE night = of_night AND run_id = ANY (runs)
        )
        OR (SELECT coalesce(sum(images), 0) FROM unnest(rejections)) < (
            SELECT coalesce(sum(images), 0) FROM nightscore.rejection_sum
            WHERE night = of_night AND run_id = ANY (runs)
        )
    THEN
        RETURN false;
    END IF;
    DELETE FROM nightscore.class_sum WHERE night = of_night AND run_id = ANY (runs);
    INSERT INTO nightscore.class_sum SELECT * FROM unnest(classes);
    DELETE FROM nightscore.score_sum WHERE night = of_night AND run_id = ANY (runs);
    INSERT INTO nightscore.score_sum SELECT * FROM unnest(scores);
    DELETE FROM nightscore.rejection_sum WHERE night = of_night AND run_id = ANY (runs);
    INSERT INTO nightscore.rejection_sum SELECT * FROM unnest(rejections);
    RETURN true;
END
$$;

REVOKE ALL ON FUNCTION
    nightscore.add_predictions(),
    nightscore.add_rejections(),
    nightscore.sum_night(text, date)
    FROM PUBLIC;

-- Which nights the next migration has summed; it drops the table at its end.
CREATE TABLE nightscore.summed_night (
    stream text NOT NULL,
    night date NOT NULL,
    PRIMARY KEY (stream, night)
);
