-- A model's entries of the audit that may have taken effect, one row per entry.
SELECT version, replaced, promoted_at, state = 'pending' AS is_pending
FROM nightscore.promotion
WHERE model = :model AND state <> 'abandoned'
