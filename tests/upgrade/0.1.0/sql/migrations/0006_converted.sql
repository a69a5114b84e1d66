-- The program's form for OpenVINO, ml.program_info.ConvertedInfo: SHA-256 of its file, and the version
-- of OpenVINO that made it; null for older versions and for what OpenVINO cannot run.
ALTER TABLE nightscore.model_version
    ADD COLUMN openvino_sha256 text,
    ADD COLUMN openvino_version text,
    ADD CHECK ((openvino_sha256 IS NULL) = (openvino_version IS NULL));

-- What the rate of scoring itself is computed from, without the start of a task and the loading of
-- programs; null for older shards.
ALTER TABLE nightscore.shard
    ADD COLUMN engine_images bigint,
    ADD COLUMN engine_seconds double precision;
