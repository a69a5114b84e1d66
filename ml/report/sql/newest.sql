-- The newest runs of the streams, whose reports the reader may see.
SELECT *
FROM reporting.nightly_summary
WHERE stream = ANY (:streams)
ORDER BY started_at DESC
LIMIT :most
