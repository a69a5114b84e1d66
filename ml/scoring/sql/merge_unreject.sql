-- An image that is scored now is no longer rejected (it had been gone, and came back).
DELETE FROM nightscore.rejection
USING staging
WHERE staging.reason IS NULL
    AND rejection.night = staging.night
    AND rejection.image_id = staging.image_id
    AND rejection.model = staging.model
    AND rejection.version = staging.version
