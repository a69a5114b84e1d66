"""Training: pixels on disk, the loop, thresholds."""
