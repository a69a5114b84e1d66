"""MLflow and the registry: runs, programs, versions, aliases and promotions."""
