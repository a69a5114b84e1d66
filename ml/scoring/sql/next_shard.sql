-- The shard to score next. Those with the fewest attempts come first, so that a shard that kills its
-- process does not keep the others from being scored.
SELECT number
FROM nightscore.shard
WHERE run_id = :run_id AND number = ANY (:shards) AND finished_at IS NULL
ORDER BY attempts, number
LIMIT 1
