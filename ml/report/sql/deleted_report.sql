-- When retention last deleted the reports of a stream's night; null if it never did.
SELECT max(finished_at) AS deleted_at
FROM reporting.maintenance
WHERE kind = 'reports' AND stream = :stream AND night = :night AND error IS NULL
