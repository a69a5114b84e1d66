-- What a shard's attempts came to, so that a failed run can say so in its row.
ALTER TABLE nightscore.shard
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN error text;

-- A promotion is written down before MLflow is told (pending), so that one that was interrupted is
-- found, and completed (done) or given up (abandoned) by what MLflow says. `outside` is a champion
-- that somebody made in MLflow itself.
ALTER TABLE nightscore.promotion
    ADD COLUMN state text NOT NULL DEFAULT 'done' CHECK (state IN ('pending', 'done', 'abandoned')),
    DROP CONSTRAINT promotion_action_check,
    ADD CONSTRAINT promotion_action_check CHECK (action IN ('promote', 'rollback', 'outside'));
CREATE INDEX promotion_pending ON nightscore.promotion (model) WHERE state = 'pending';
