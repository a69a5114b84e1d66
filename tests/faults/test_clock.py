"""The clock of the scoring machine is a day off."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ml.scoring import steps
from tests.faults.conftest import trials
from tests.support import evidence, night
from tests.support.process import Scoring, ScoringFailedError

_DAY_S = 24 * 3600


@pytest.fixture(scope="module")
def shifted_clock(tmp_path_factory) -> str:
    """A library that shifts the clock of whatever process loads it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is needed to shift the clock of a process")
    library = tmp_path_factory.mktemp("clock") / "shifted_clock.so"
    source = Path(__file__).with_name("shifted_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return str(library)


@pytest.mark.parametrize(("name", "shift_s"), [("ahead", _DAY_S), ("behind", -_DAY_S)])
def test_the_clock_is_a_day_off(outcome, shifted_clock, name, shift_s):
    """It either scores the night it was asked for, or fails without a trace."""
    found = outcome(f"clock a day {name}")
    shown = subprocess.run(
        ["date", "+%s"],
        env={"LD_PRELOAD": shifted_clock, "CLOCK_SHIFT_S": str(shift_s)},
        capture_output=True,
        check=True,
    )
    real = subprocess.run(["date", "+%s"], capture_output=True, check=True)
    assert abs(int(shown.stdout) - int(real.stdout) - shift_s) < 60
    for _ in range(trials(3)):
        tonight = night.make()
        process = Scoring(tonight, LD_PRELOAD=shifted_clock, CLOCK_SHIFT_S=str(shift_s))
        process.go()
        try:
            process.finish()
        except ScoringFailedError:
            found.add(evidence.of_night(tonight), counts=False)
        with found.recovery():
            steps.score_night(tonight.stream, tonight.date.isoformat())
        found.add(evidence.of_complete_night(tonight))
    assert found.is_clean
