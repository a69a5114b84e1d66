"""The disk is full while a program is cached.

A limit on the size of files stands for the full disk: writing fails in the same place, with EFBIG
instead of ENOSPC, and no rights to mount a small file system are needed.
"""

import shutil

import pytest

from ml.scoring import steps
from ml.settings import state_folder
from tests.faults.conftest import trials
from tests.support import evidence, night
from tests.support.process import Scoring, ScoringFailedError

_TOO_SMALL_BYTES = 16 * 1024


def test_the_disk_is_full_while_a_program_is_cached(outcome):
    result = outcome("disk full while a program is cached")
    for _ in range(trials(3)):
        tonight = night.make()
        shutil.rmtree(state_folder() / "cache" / "programs", ignore_errors=True)
        process = Scoring(tonight, most_bytes=_TOO_SMALL_BYTES)
        process.go()
        with pytest.raises(ScoringFailedError) as failed:
            process.finish()
        assert "images are neither scored nor rejected" in str(failed.value)
        result.add(evidence.of_night(tonight), counts=False)
        with result.recovery():
            steps.score_night(tonight.stream, tonight.date.isoformat())
        result.add(evidence.of_complete_night(tonight))
    assert result.is_clean
