CREATE OR REPLACE VIEW reporting.maintenance AS
SELECT
    maintenance.maintenance_id,
    maintenance.kind,
    maintenance.name,
    maintenance.stream,
    maintenance.night,
    maintenance.items,
    maintenance.bytes,
    maintenance.reason,
    maintenance.deleted_by,
    maintenance.started_at,
    maintenance.finished_at,
    maintenance.error
FROM nightscore.maintenance;

COMMENT ON VIEW reporting.maintenance IS 'One row per deletion of what had passed its limit, whether it succeeded or not.';
COMMENT ON COLUMN reporting.maintenance.maintenance_id IS 'Numbers the deletions in their order.';
COMMENT ON COLUMN reporting.maintenance.kind IS 'The limit that had passed: manifests, results, heatmaps, reports, snapshots or versions.';
COMMENT ON COLUMN reporting.maintenance.name IS 'What was to be deleted.';
COMMENT ON COLUMN reporting.maintenance.stream IS 'The stream that it belonged to; null if it belonged to several or to none.';
COMMENT ON COLUMN reporting.maintenance.night IS 'The night that it belonged to; null if it belonged to none.';
COMMENT ON COLUMN reporting.maintenance.items IS 'How many rows, objects or versions it held; for partitions Postgres'' estimate.';
COMMENT ON COLUMN reporting.maintenance.bytes IS 'How much it held, in bytes; of a part of a partition, an estimate.';
COMMENT ON COLUMN reporting.maintenance.reason IS 'Why it could be deleted.';
COMMENT ON COLUMN reporting.maintenance.deleted_by IS 'The user of the process that deleted it.';
COMMENT ON COLUMN reporting.maintenance.started_at IS 'When the deletion began.';
COMMENT ON COLUMN reporting.maintenance.finished_at IS 'When the deletion ended; null while it runs, or when its process was killed.';
COMMENT ON COLUMN reporting.maintenance.error IS 'Why nothing, or not all of it, was deleted; null if it was.';
