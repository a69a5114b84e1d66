"""Progress: a row on a terminal, lines in a pipe."""

import io
import re
from types import SimpleNamespace

import pytest

from ml.cli import console, progress


@pytest.fixture
def shown(monkeypatch):
    """What goes to standard error, which is a pipe."""
    file = io.StringIO()
    monkeypatch.setattr(progress, "err", console._Terminal(file=file, soft_wrap=True))
    return file


def test_in_a_pipe_a_line_comes_when_something_begins_and_then_now_and_then(shown):
    with progress.tracking() as tracker:
        for done in range(1000):
            tracker.doing("data set a", f"{done} images")
        tracker.doing("data set b", "begins")
        tracker.done("data set a")
        tracker.say("data set a: 1,000 images")
    lines = [line[9:] for line in shown.getvalue().splitlines()]
    assert lines == ["data set a: 0 images", "data set b: begins", "data set a: 1,000 images"]


def test_in_a_pipe_a_wait_that_began_too_soon_is_said_later(shown, monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    with progress.tracking() as tracker:
        tracker.doing("retrain_b", "waits for Airflow's scheduler")
        clock.now = 5
        tracker.doing("retrain_b", "train waits for its turn")
        clock.now = 20
        tracker.doing("retrain_a", "train: epoch 2 of 8")
    assert [line[9:] for line in shown.getvalue().splitlines()] == [
        "retrain_b: waits for Airflow's scheduler",
        "retrain_b: train waits for its turn",
        "retrain_a: train: epoch 2 of 8",
    ]


def test_in_a_pipe_what_is_being_done_fits_in_a_line(shown):
    with progress.tracking() as tracker:
        tracker.doing("dag", f"a message\nof {'many words ' * 50}")
    (line,) = shown.getvalue().splitlines()
    assert len(line) <= progress.WIDTH
    assert line.endswith("…")


def test_on_a_terminal_each_thing_has_a_row_until_it_is_done(monkeypatch):
    file = io.StringIO()
    terminal = console._Terminal(file=file, force_terminal=True, no_color=True, width=80)
    monkeypatch.setattr(progress, "err", terminal)
    rows = progress._Rows()
    rows.doing("retrain_a", "train: epoch 1 of 8")
    rows.doing("retrain_a", f"train: epoch 2 of 8 \x1b[31m{'x' * 100}")
    rows.doing("retrain_b", "train waits for its turn")
    terminal.print(rows)
    first, second = re.sub(r"\x1b\[\d*m", "", file.getvalue()).splitlines()
    assert r"retrain_a train: epoch 2 of 8 \x1b[31m" in first
    assert "0:00:00" in first
    assert "retrain_b train waits for its turn" in second
    rows.done("retrain_a")
    file.truncate(0)
    terminal.print(rows)
    assert "retrain_a" not in file.getvalue()


def test_counting_says_how_many_of_how_many_and_how_fast(shown, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    with progress.counted("scoring spill") as count:
        count(500, 1265)
    assert shown.getvalue().startswith("scoring spill: 500 of 1,265 images, ")
    assert shown.getvalue().endswith(" images/s\n")
