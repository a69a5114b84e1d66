-- The groups of a stream's images that the pattern of its configuration takes out of the key. An empty
-- text is a group that the pattern does not have.
CREATE TABLE nightscore.camera (
    camera_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL,
    camera text NOT NULL,
    line text NOT NULL DEFAULT '',
    product text NOT NULL DEFAULT '',
    first_seen timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT camera_groups UNIQUE (stream, camera, line, product)
);
-- The nights of a shard's images, so that scoring it reads their partitions only; null for older shards.
ALTER TABLE nightscore.shard
    ADD COLUMN first_night date,
    ADD COLUMN last_night date;
-- Null for a stream without a pattern, for a key that does not match, and for older images until
-- `nightscore cameras` has assigned them. The reference to a camera is not checked for each image.
ALTER TABLE nightscore.image ADD COLUMN camera_id integer;
