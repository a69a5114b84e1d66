"""Nightscore's engine, called as the shard task of the DAG calls it."""

import os
from datetime import date
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np

from benchmarks.scoring.contender import Job, Run, main
from ml.config.loading import configuration
from ml.database.connection import transaction
from ml.database.tables import OPEN, ScoringRun, ScoringRunModel
from ml.program.info import ProgramInfo, sha256
from ml.program.program import Program
from ml.scoring.discovery import discover, plan_shards
from ml.scoring.shard import score_shard


def load_program(job: Job, version: int) -> Program:
    """The job's program as that version of its model."""
    path = Path(job.program)
    info = ProgramInfo(
        job.model, version, job.task, job.classes, job.input_size, job.threshold, sha256(path)
    )
    return Program.load(path, info, "cuda" if job.device == "cuda" else "cpu")


def open_run(job: Job, version: int) -> UUID:
    """A run of the job's night that owes every image a result by `version`.

    Its images are discovered and cut into shards. Its rows are written here, as there is no
    registry.
    """
    run_id, night = uuid4(), date.fromisoformat(job.night)
    stream = configuration().stream(job.workload)
    with transaction() as session:
        session.add(
            ScoringRun(
                run_id=run_id,
                trigger=f"benchmark-{run_id}",
                stream=job.workload,
                night=night,
                status=OPEN,
                lookback_from=night,
                max_rejected_share=stream.max_rejected_share,
                shard_size=stream.shard_size,
            )
        )
        session.flush()
        session.add(ScoringRunModel(run_id=run_id, model=job.model, version=version))
    discover(run_id)
    return run_id


def _warm_up(job: Job, program: Program) -> None:
    """A full batch, as the others do: on a GPU the first one chooses and loads kernels."""
    if job.device == "cuda":
        program.predict(np.zeros((program.batch_size, 3, *job.input_size), dtype=np.uint8))


def setup(job: Job) -> Run:
    """Load the program, warm up and discover the night; the run is timed."""
    os.environ["NIGHTSCORE_PRECISION"] = job.precision
    # A version of its own for each pass: so every image is to be scored again.
    program = load_program(job, job.version)
    _warm_up(job, program)
    run_id = open_run(job, job.version)
    shards = plan_shards(run_id)

    def run() -> int:
        counts = [score_shard(run_id, number, load=lambda versions: [program]) for number in shards]
        return sum(count["scored"] + count["rejected"] for count in counts)

    return run


if __name__ == "__main__":
    main(setup)
