"""How well `nightscore capacity` predicts a night: from one night, the time of larger ones.

Scores a night in one process, reads the costs from the tables as the command does, and compares the
time of nights of other sizes with what the model says. `python -m benchmarks.scoring.prediction`.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from benchmarks.scoring.growth import bucket
from benchmarks.scoring.history import FIRST, LOOKBACK, SHARDS, sites
from ml.capacity import costs
from ml.capacity.plan import scoring_seconds
from ml.settings import settings

_BYTES = 1_000


def main() -> None:
    """Score the nights and print the errors."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring.prediction", description=__doc__
    )
    parser.add_argument("--images", type=int, default=20_000, help="of a night's folder")
    parser.add_argument("--others", type=int, nargs="+", default=(20_000, 60_000))
    arguments = parser.parse_args()
    for name in list(os.environ):
        if name.startswith(("AWS_", "NIGHTSCORE_")):
            del os.environ[name]
    counts = (arguments.images, *arguments.others)
    with (
        tempfile.TemporaryDirectory(prefix="nightscore-prediction-") as name,
        ExitStack() as buckets,
    ):
        endpoints = [buckets.enter_context(bucket(count, any_night=True)) for count in counts]
        with sites((0,), 1, 1, endpoints[0], Path(name)) as (site,):
            # The nights that the first looks back on were written, not scored: they cost nothing.
            session = site.connect()
            session.cursor().execute("UPDATE nightscore.scoring_run SET status = 'failed'")
            session.close()
            known = None
            for at, (count, endpoint) in enumerate(zip(counts, endpoints, strict=True)):
                # Nights far apart: none looks back on another.
                # The images of those that it looks back on are late ones, and scored as well.
                images = (LOOKBACK + 1) * count
                night = FIRST + timedelta(days=at * (LOOKBACK + 2) + 30)
                run_id = site.open_run("spill", night, count)
                seconds = site.step("night", run_id, endpoint=endpoint)["seconds"]
                if known is None:
                    settings.cache_clear()
                    known = costs.read("spill", _BYTES)
                    print(f"{images:,} images took {seconds:.1f} s: {known}", flush=True)
                    continue
                predicted = images * known.outside_seconds_per_image + scoring_seconds(
                    images, (LOOKBACK + 1) * SHARDS, known.cpu_images_per_second, known
                )
                error = predicted / seconds - 1
                print(
                    f"{images:,} images took {seconds:.1f} s, "
                    f"predicted {predicted:.1f} s: {error:+.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
