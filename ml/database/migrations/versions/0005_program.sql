-- The complete ml.program.ProgramInfo, with which what is loaded has to agree; null for older versions.
ALTER TABLE nightscore.model_version ADD COLUMN program jsonb;
