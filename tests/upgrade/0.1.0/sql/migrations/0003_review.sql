-- Partitions get the columns with their parent; a constant default is not written into old rows.
ALTER TABLE nightscore.prediction
    ADD COLUMN novelty real,
    ADD COLUMN review boolean NOT NULL DEFAULT false;
CREATE INDEX prediction_review ON nightscore.prediction (night, model) WHERE review;

ALTER TABLE nightscore.scoring_run ADD COLUMN to_review bigint;

ALTER TABLE nightscore.model_version
    ADD COLUMN threshold_detail jsonb,
    ADD COLUMN novelty_threshold double precision;
