-- The run's cameras, one row per camera and version, the worst first: the highest share of rejected
-- and flagged images, then the highest drift. Nothing where no image of the run has a camera. The
-- row without a camera holds the images whose keys name none; camera 0 stands for it in the sums.
-- The drift is that of reporting.score_drift, of a camera's scores.
WITH scored AS (
    SELECT model, version, camera_id, sum(images) AS images, sum(flagged) AS flagged
    FROM nightscore.class_sum
    WHERE run_id = :run_id AND night = ANY (:nights)
    GROUP BY model, version, camera_id
),
rejected AS (
    SELECT model, version, camera_id, sum(images) AS images
    FROM nightscore.rejection_sum
    WHERE run_id = :run_id AND night = ANY (:nights)
    GROUP BY model, version, camera_id
    HAVING sum(images) > 0
),
counted AS (
    SELECT model, version, camera_id, bin, sum(images) AS images
    FROM nightscore.score_sum
    WHERE run_id = :run_id AND night = ANY (:nights)
    GROUP BY model, version, camera_id, bin
),
shares AS (
    SELECT
        scored.model,
        scored.version,
        scored.camera_id,
        scored.images,
        greatest(reference.share, 1e-6) AS expected,
        (coalesce(counted.images, 0) + 0.5)
            / (scored.images + 0.5 * cardinality(described.reference_shares)) AS actual
    FROM scored
    JOIN nightscore.model_version AS described USING (model, version)
    CROSS JOIN LATERAL unnest(described.reference_shares) WITH ORDINALITY AS reference (share, bin)
    LEFT JOIN counted
        ON counted.model = scored.model
        AND counted.version = scored.version
        AND counted.camera_id = scored.camera_id
        AND counted.bin = reference.bin - 1
),
drift AS (
    SELECT model, version, camera_id,
        sum((actual - expected) * ln(actual / expected))::double precision AS psi
    FROM shares
    GROUP BY model, version, camera_id
),
cameras AS (
    SELECT
        model,
        version,
        camera_id,
        coalesce(scored.images, 0)::bigint AS scored,
        coalesce(scored.flagged, 0)::bigint AS flagged,
        coalesce(rejected.images, 0)::bigint AS rejected,
        drift.psi,
        drift.psi > 0.25 AND scored.images >= 100 AS alarm
    FROM scored
    FULL JOIN rejected USING (model, version, camera_id)
    LEFT JOIN drift USING (model, version, camera_id)
)
SELECT
    cameras.model,
    cameras.version,
    camera.camera,
    camera.line,
    camera.product,
    cameras.scored,
    cameras.flagged,
    cameras.flagged / nullif(cameras.scored, 0)::double precision AS anomaly_rate,
    cameras.rejected,
    cameras.psi,
    cameras.alarm,
    described.task,
    count(*) OVER () AS rows
FROM cameras
LEFT JOIN nightscore.camera USING (camera_id)
LEFT JOIN nightscore.model_version AS described USING (model, version)
WHERE EXISTS (SELECT FROM cameras WHERE camera_id <> 0)
ORDER BY
    (cameras.flagged + cameras.rejected)::double precision
        / nullif(cameras.scored + cameras.rejected, 0) DESC NULLS LAST,
    cameras.psi DESC NULLS LAST,
    camera.line, camera.camera, camera.product, cameras.model, cameras.version
LIMIT :most
