-- Gives images of a night their cameras; -1 for none. Images that have theirs are left alone.
UPDATE nightscore.image
SET camera_id = nullif(found.camera_id, -1)
FROM unnest(CAST(:image_ids AS bigint[]), CAST(:camera_ids AS integer[]))
    AS found (image_id, camera_id)
WHERE image.night = :night
    AND image.image_id = found.image_id
    AND image.camera_id IS DISTINCT FROM nullif(found.camera_id, -1)
