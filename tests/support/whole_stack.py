"""A stack with Airflow on which `nightscore run` has trained both models and scored a night."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.command import NIGHT, REPOSITORY, nightscore

# Within seconds, Airflow notices that a scheduler was killed and looks for its tasks.
PROMPT_SCHEDULER = {
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
}
_LESS = {
    "cpu: {epochs: 8,": "cpu: {epochs: 1,",
    "cpu: {epochs: 14,": "cpu: {epochs: 2,",
    "options: {width: 16,": "options: {width: 8,",
    # Several groups of shards in a night.
    "models: [spill-anomaly]\n    lookback_nights: 3\n    shard_size: 50000\n": (
        "models: [spill-anomaly]\n    lookback_nights: 3\n    shard_size: 50\n"
        "    shards_per_task: 2\n"
    ),
}


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Start the stack in a folder and run the main job; yields the state folder.

    What it printed is in `summary.json` there. The stack is stopped at the end, if it still runs.
    """
    home = folder / ".nightscore"
    # The repository's configuration, with less training.
    text = (REPOSITORY / "nightscore.yaml").read_text(encoding="utf-8")
    for whole, part in _LESS.items():
        assert text.count(whole) == 1
        text = text.replace(whole, part)
    (folder / "nightscore.yaml").write_text(text)
    try:
        printed = nightscore("run", "--date", NIGHT, "--json", home=home)
        (home / "summary.json").write_text(printed)
        yield home
    finally:
        nightscore("down", home=home)
        shutil.rmtree(home, ignore_errors=True)
