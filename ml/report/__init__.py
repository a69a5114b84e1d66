"""The nightly report: a self-contained HTML page for each scoring run."""
