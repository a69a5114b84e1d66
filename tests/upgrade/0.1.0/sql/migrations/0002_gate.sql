-- The gate's decision with its numbers and checks (ml.gate.Decision); null for versions registered
-- before there was one.
ALTER TABLE nightscore.model_version ADD COLUMN gate jsonb;
