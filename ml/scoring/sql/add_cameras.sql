-- Adds cameras to a stream, those that are not there yet. An identity is drawn for each row that is
-- tried, also where there is a conflict, so known ones are left out.
INSERT INTO nightscore.camera (stream, camera, line, product)
SELECT :stream, camera, line, product
FROM unnest(
    CAST(:cameras AS text[]), CAST(:lines AS text[]), CAST(:products AS text[])
) AS found (camera, line, product)
WHERE NOT EXISTS (
    SELECT
    FROM nightscore.camera AS known
    WHERE known.stream = :stream
        AND known.camera = found.camera
        AND known.line = found.line
        AND known.product = found.product
)
ON CONFLICT DO NOTHING
