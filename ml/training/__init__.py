"""Training: pixels on disk, the device, the loop, thresholds."""
