"""Where the benchmarks find what they read."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DATASETS = REPOSITORY.parent / "shared" / "datasets"
