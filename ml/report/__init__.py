"""The nightly report: a self-contained HTML page per scoring run, and the list of the runs."""
