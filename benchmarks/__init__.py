"""Programs that print the figures of benchmarks/README.md: scoring/, models/, and their peers/."""
