"""The steps of a night alone, a contender; `python -m` takes STEP and JOB.json."""

import sys
from collections.abc import Callable
from datetime import date

from benchmarks.scoring.contender import Job, Run, main
from benchmarks.scoring.nightscore import load_program, open_run
from ml.scoring import runs
from ml.scoring.discovery import discover, plan_shards
from ml.scoring.shard import score_shard


def discover_all(job: Job) -> Run:
    """A night of which nothing is known yet: listed, stored, cut into shards."""
    run_id = open_run(job, job.turn)

    def run() -> int:
        found = discover(run_id)
        plan_shards(run_id)
        return found

    return run


def score_all(job: Job) -> Run:
    """All shards of that run, one after the other in one process."""
    program = load_program(job, job.turn)
    run_id = runs.newest_run(job.workload, date.fromisoformat(job.night))

    def run() -> int:
        return sum(
            score_shard(run_id, number, load=lambda versions: [program])["scored"]
            for number in plan_shards(run_id)
        )

    return run


def discover_again(job: Job) -> Run:
    """The same night when everything is scored: listed, and nothing found to do."""
    run_id = open_run(job, job.turn)

    def run() -> int:
        if discover(run_id):
            raise SystemExit("Images were found that are scored already.")
        return 0

    return run


STEPS: dict[str, Callable[[Job], Run]] = {
    "discover": discover_all,
    "score": score_all,
    "discover_again": discover_again,
}


if __name__ == "__main__":
    main(STEPS[sys.argv[1]])
