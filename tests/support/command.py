"""The command line, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dotenv import dotenv_values
from sqlalchemy import NullPool, create_engine, text

REPOSITORY = Path(__file__).parents[2]
NIGHT = "2026-01-15"
# What the commands so far have printed, on standard output and error.
PRINTED: dict[str, bytes] = {}


def nightscore(*arguments: str, home: Path, fails: bool = False) -> str:
    """Run the command line as a user would; returns what it printed on standard output."""
    environment = {key: value for key, value in os.environ.items() if "NIGHTSCORE" not in key}
    ours = ("AWS_", "MLFLOW_")
    environment = {key: value for key, value in environment.items() if not key.startswith(ours)}
    done = subprocess.run(
        [Path(sys.executable).parent / "nightscore", *arguments],
        env=environment
        | {"NIGHTSCORE_HOME": str(home), "NIGHTSCORE_CONFIG": str(home.parent / "nightscore.yaml")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1500,  # on a machine that others use as well
    )
    PRINTED[f"the output of {' '.join(arguments)}"] = (done.stdout + done.stderr).encode()
    assert (done.returncode != 0) == fails, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout if not fails else done.stderr


def query(home: Path, sql: str) -> list[dict]:
    """Rows of a query by the analyst's role, as `nightscore sql --json` gives them; without the
    start of a process."""
    from ml.cli.console import json_default

    url = dotenv_values(home / "stack.env")["NIGHTSCORE_ANALYST_URL"]
    with create_engine(url, poolclass=NullPool).connect() as connection:
        rows = [dict(row) for row in connection.execute(text(sql)).mappings()]
    return json.loads(json.dumps(rows, default=json_default))
