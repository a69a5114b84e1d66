-- The champions of some models. `alias` lists all aliases of a version.
SELECT *
FROM reporting.model_versions
WHERE model = ANY (:models)
    AND 'champion' = ANY (string_to_array(alias, ', '))
ORDER BY model, version
