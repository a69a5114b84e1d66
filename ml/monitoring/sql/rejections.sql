-- The rejected images of nights by stream and reason. The nights are constants, so that Postgres reads
-- their partitions only.
SELECT stream, night, reason, images
FROM reporting.rejection_reasons
WHERE night = ANY (CAST(:nights AS date[]))
