CREATE OR REPLACE VIEW reporting.model_versions AS
SELECT
    version.model,
    version.version,
    (
        SELECT string_agg(alias.alias, ', ' ORDER BY alias.alias)
        FROM nightscore.model_alias AS alias
        WHERE alias.model = version.model AND alias.version = version.version
    ) AS alias,
    version.task,
    version.metrics,
    version.threshold,
    version.registered_at,
    (
        SELECT max(promotion.promoted_at)
        FROM nightscore.promotion
        WHERE promotion.model = version.model
            AND promotion.version = version.version
            AND promotion.state = 'done'
    ) AS promoted_at,
    version.gate_passed,
    version.gate_reason,
    version.classes,
    version.snapshot_uri,
    version.program_sha256,
    version.mlflow_run_id,
    version.synthetic,
    version.gate ->> 'metric' AS gate_metric,
    (version.gate ->> 'challenger')::double precision AS gate_value,
    (version.gate ->> 'champion')::double precision AS gate_champion_value,
    (version.gate ->> 'difference')::double precision AS gate_difference,
    (version.gate ->> 'lower')::double precision AS gate_lower_bound,
    version.gate -> 'checks' AS gate_checks,
    version.threshold_detail ->> 'policy' AS threshold_policy,
    version.threshold_detail,
    version.novelty_threshold,
    version.openvino_version,
    version.openvino_sha256,
    version.deleted_at
FROM nightscore.model_version AS version;

COMMENT ON VIEW reporting.model_versions IS 'One row per registered version of a model.';
COMMENT ON COLUMN reporting.model_versions.model IS 'The registered model.';
COMMENT ON COLUMN reporting.model_versions.version IS 'Its version, counted from 1.';
COMMENT ON COLUMN reporting.model_versions.alias IS 'champion scores the nights, challenger is the one trained last, previous is the one that a rollback restores; null for none.';
COMMENT ON COLUMN reporting.model_versions.task IS 'classification or anomaly.';
COMMENT ON COLUMN reporting.model_versions.metrics IS 'Metrics on held-out images when it was registered; the gate does not use those whose names begin with test_.';
COMMENT ON COLUMN reporting.model_versions.threshold IS 'Scores of at least this value are flagged; null for a classifier.';
COMMENT ON COLUMN reporting.model_versions.registered_at IS 'When it was registered.';
COMMENT ON COLUMN reporting.model_versions.promoted_at IS 'When it last became champion; null if never.';
COMMENT ON COLUMN reporting.model_versions.gate_passed IS 'Whether the gate allowed its promotion.';
COMMENT ON COLUMN reporting.model_versions.gate_reason IS 'The reason of the gate''s decision.';
COMMENT ON COLUMN reporting.model_versions.classes IS 'The classes, in the order of the program''s outputs.';
COMMENT ON COLUMN reporting.model_versions.snapshot_uri IS 'The snapshot it was trained from.';
COMMENT ON COLUMN reporting.model_versions.program_sha256 IS 'SHA-256 of the exported program.';
COMMENT ON COLUMN reporting.model_versions.mlflow_run_id IS 'The training run in MLflow.';
COMMENT ON COLUMN reporting.model_versions.synthetic IS 'True when it was trained on the built-in synthetic sample data.';
COMMENT ON COLUMN reporting.model_versions.gate_metric IS 'The metric that decided.';
COMMENT ON COLUMN reporting.model_versions.gate_value IS 'Its value on the held-out images; null when it is not measurable.';
COMMENT ON COLUMN reporting.model_versions.gate_champion_value IS 'The champion''s value on the same images; null when there was none to compare with.';
COMMENT ON COLUMN reporting.model_versions.gate_difference IS 'gate_value less gate_champion_value; null when there was no champion to compare with.';
COMMENT ON COLUMN reporting.model_versions.gate_lower_bound IS 'Lower confidence bound of the difference, with the confidence of the configuration; the gate requires at least -max_drop.';
COMMENT ON COLUMN reporting.model_versions.gate_checks IS 'The checks of the gate, a JSON array of {name, value, required, passed}.';
COMMENT ON COLUMN reporting.model_versions.threshold_policy IS 'The policy that gave threshold: midpoint, target_fpr or cost; null for a classifier.';
COMMENT ON COLUMN reporting.model_versions.threshold_detail IS 'How threshold was chosen: asked is the policy in nightscore.yaml, low and high the 95 % bootstrap interval of the threshold, tpr and fpr the rates on held-out images with their exact 95 % intervals and counts, detail further numbers of the policy. Null for a classifier.';
COMMENT ON COLUMN reporting.model_versions.novelty_threshold IS 'Images with at least this novelty are marked for review; null for a version that does not measure novelty.';
COMMENT ON COLUMN reporting.model_versions.openvino_version IS 'The version of OpenVINO that converted the program for CPUs; null when it is not converted, and each machine converts it itself. nightscore models convert converts it again.';
COMMENT ON COLUMN reporting.model_versions.openvino_sha256 IS 'SHA-256 of the converted program.';
COMMENT ON COLUMN reporting.model_versions.deleted_at IS 'When retention deleted it from MLflow: it can be neither loaded nor promoted, and its results stay; null for a version that can.';
