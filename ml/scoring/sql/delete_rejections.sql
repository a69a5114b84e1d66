-- An image that is scored now is no longer rejected: its object was gone and has come back.
DELETE FROM nightscore.rejection
USING staged_prediction AS staged
WHERE rejection.night = ANY (:nights)
    AND rejection.night = staged.night
    AND rejection.image_id = staged.image_id
    AND rejection.model = staged.model
    AND rejection.version = staged.version
