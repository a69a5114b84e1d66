"""Progress: a row on a terminal, lines in a pipe."""

import io
import re
from types import SimpleNamespace

import pytest

from ml.cli import console, progress


@pytest.fixture
def stderr(monkeypatch):
    """What goes to standard error, which is a pipe."""
    file = io.StringIO()
    monkeypatch.setattr(progress, "err", console._Terminal(file=file, soft_wrap=True))
    return file


def test_in_a_pipe_a_line_comes_when_something_begins_and_then_now_and_then(stderr):
    with progress.show_progress() as tasks:
        for done in range(1000):
            tasks.update("data set a", f"{done} images")
        tasks.update("data set b", "begins")
        tasks.finish("data set a")
        tasks.message("data set a: 1,000 images")
    lines = [line[9:] for line in stderr.getvalue().splitlines()]
    assert lines == ["data set a: 0 images", "data set b: begins", "data set a: 1,000 images"]


def test_in_a_pipe_a_wait_that_began_too_soon_is_shown_later(stderr, monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    with progress.show_progress() as tasks:
        tasks.update("retrain_b", "waits for Airflow's scheduler")
        clock.now = 5
        tasks.update("retrain_b", "train waits for its turn")
        clock.now = 20
        tasks.update("retrain_a", "train: epoch 2 of 8")
    assert [line[9:] for line in stderr.getvalue().splitlines()] == [
        "retrain_b: waits for Airflow's scheduler",
        "retrain_b: train waits for its turn",
        "retrain_a: train: epoch 2 of 8",
    ]


def test_in_a_pipe_what_is_being_done_fits_in_a_line(stderr):
    with progress.show_progress() as tasks:
        tasks.update("dag", f"a message\nof {'many words ' * 50}")
    (line,) = stderr.getvalue().splitlines()
    assert len(line) <= progress.WIDTH
    assert line.endswith("…")


def test_on_a_terminal_each_task_has_a_row_until_it_is_finished(monkeypatch):
    file = io.StringIO()
    terminal = console._Terminal(file=file, force_terminal=True, no_color=True, width=80)
    monkeypatch.setattr(progress, "err", terminal)
    rows = progress._Rows()
    rows.update("retrain_a", "train: epoch 1 of 8")
    rows.update("retrain_a", f"train: epoch 2 of 8 \x1b[31m{'x' * 100}")
    rows.update("retrain_b", "train waits for its turn")
    terminal.print(rows)
    first, second = re.sub(r"\x1b\[\d*m", "", file.getvalue()).splitlines()
    assert r"retrain_a train: epoch 2 of 8 \x1b[31m" in first
    assert "0:00:00" in first
    assert "retrain_b train waits for its turn" in second
    rows.finish("retrain_a")
    file.truncate(0)
    terminal.print(rows)
    assert "retrain_a" not in file.getvalue()


def test_counting_says_how_many_of_how_many_and_how_fast(stderr, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    with progress.count_images("scoring spill") as on_count:
        on_count(500, 1265)
    assert stderr.getvalue().startswith("scoring spill: 500 of 1,265 images, ")
    assert stderr.getvalue().endswith(" images/s\n")
