"""Training: images of a snapshot as arrays, the training loop, thresholds, a run in MLflow."""
