"""The cache of programs: bounded, and shared by processes that read, fetch and remove at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml.errors import ConfigurationError
from ml.registry import cache

REPOSITORY = Path(__file__).parents[3]
HOLD = """
import sys
from ml.registry import cache
cache.hold(cache.version_entry("model", int(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NIGHTSCORE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "_held", {})
    return tmp_path


def _fill(version: int, size: int, used: float) -> Path:
    entry = cache.version_entry("model", version)
    entry.mkdir(parents=True)
    (entry / "model.pt2").write_bytes(bytes(size))
    os.utime(entry, (used, used))
    return entry


def _start_holder(version: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(version)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("value", "amount"), [("", 2 * 2**30), ("512MiB", 2**29), ("1.5 GiB", 3 * 2**29)]
)
def test_the_limit_is_an_amount(monkeypatch, value, amount):
    monkeypatch.setenv(cache.VARIABLE, value)
    assert cache.limit() == amount


@pytest.mark.parametrize("value", ["2", "2GB", "half", "-1GiB"])
def test_another_limit_is_refused_by_name(monkeypatch, value):
    monkeypatch.setenv(cache.VARIABLE, value)
    with pytest.raises(ConfigurationError, match=cache.VARIABLE):
        cache.limit()


def test_the_least_recently_used_entries_are_removed_until_the_others_fit(home):
    entries = [_fill(version, 1000, used=version) for version in range(1, 6)]
    run = cache.run_entry("abc")
    run.mkdir(parents=True)
    (run / "model.pt2").write_bytes(bytes(1000))
    os.utime(run, (0, 0))
    cache.evict(3000)
    assert [entry.exists() for entry in entries] == [False, False, True, True, True]
    assert not run.exists()
    assert list((home / "cache" / "removed").iterdir()) == []


def test_what_was_used_again_is_no_longer_the_oldest(home):
    old, newer = _fill(1, 1000, used=1), _fill(2, 1000, used=2)
    cache.hold(old)
    cache._held.popitem()[1].close()  # as when the process that used it has ended
    cache.evict(1000)
    assert old.exists()
    assert not newer.exists()


def test_an_entry_that_this_process_has_used_stays(home):
    entry = _fill(1, 1000, used=1)
    cache.hold(entry)
    cache.evict(0)
    assert entry.exists()


def test_an_entry_that_another_process_uses_stays_until_that_process_is_killed(home):
    first, second = _fill(1, 1000, used=1), _fill(2, 1000, used=2)
    holder = _start_holder(1)
    try:
        cache.evict(0)
        assert first.exists()
        assert not second.exists()
    finally:
        holder.kill()
        holder.communicate()
    cache.evict(0)
    assert not first.exists()


def test_a_folder_that_cannot_hold_locks_is_used_and_nothing_is_removed(home):
    entry = _fill(1, 1000, used=1)
    (home / "cache" / "locks").write_text("a file where the folder should be")
    cache.hold(entry)
    with cache.fetching(entry):
        pass
    cache.evict(0)
    assert entry.exists()


def test_processes_that_read_fetch_and_remove_at_once_never_see_half_an_entry(home):
    counts = home / "counts"
    command = [sys.executable, "-m", "tests.support.cache_process", "30", str(counts)]
    processes = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    failures = [process.communicate()[0] for process in processes]
    assert failures == ["0\n"] * 4
    fetched = len(counts.read_text().splitlines())
    # Some were found, and some had been removed in the meantime.
    assert 3 < fetched < 120
