"""The retrain DAG: its steps, the assessment of a new version, its model card, reproductions."""
