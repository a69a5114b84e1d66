"""Make a release's state, to be kept in `tests/upgrade/`: run it in a checkout of the release.

`python -m tests.upgrade.make_state VERSION` starts a local stack in a temporary folder, trains two
versions of a classifier and of an anomaly detector, scores a night with each, and keeps what is
small of it. It goes through the command line, which changes least from release to release.
"""

import argparse
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support import synthetic_images
from tests.support.command import nightscore, query
from tests.upgrade import state
from tests.upgrade.state import REPOSITORY, STATES, Server

CONFIGURATION = """\
storage: s3://nightscore/plant
streams:
  parts:
    prefix: s3://nightscore/plant/streams/parts
    models: [shades, moulds]
    max_rejected_share: 0.5
models:
  shades:
    task: classification
    dataset: shades
    architecture: residual_network
    input_size: [16, 16]
    options: {{width: 8}}
    seed: {seed}
    holdout_share: 0.3
    training:
      cpu: {{epochs: 2, batch_size: 32, learning_rate: 0.1}}
    gate: {{metric: accuracy, minimum: 0.7, max_drop: 0.05}}
  moulds:
    task: anomaly
    dataset: moulds
    architecture: anomaly_segmenter
    input_size: [16, 16]
    options: {{width: 4}}
    seed: {seed}
    holdout_share: 0.3
    training:
      cpu: {{epochs: 2, batch_size: 32, learning_rate: 0.005}}
    gate: {{metric: auroc, minimum: 0.5, max_drop: 0.5}}
"""
STREAM = "parts"
MODELS = ("shades", "moulds")
# Scored by version 1 and 2 of both models.
NIGHTS = ("2026-01-14", "2026-01-15")
# Large, and no night reads it.
LEFT_OUT = {"datasets", "plots"}


def main() -> None:
    """Make the state of the release that is checked out here."""
    parser = argparse.ArgumentParser(description="Make a release's state, to be kept.")
    parser.add_argument("version", help="the release that is checked out here, such as 0.2.0")
    parser.add_argument("--into", type=Path, default=STATES, help="tests/upgrade of a checkout")
    arguments = parser.parse_args()
    target: Path = arguments.into.absolute() / arguments.version
    if target.exists():
        sys.exit(f"{target} is there already: a release's state is made once.")
    if changed := _git("status", "--porcelain", "--", "ml"):
        sys.exit(f"The code is not the release's:\n{changed}")
    if not (state.migration_files() and state.view_files()):
        sys.exit("The release's migrations or views are not where tests/upgrade/state.py looks.")
    # Kept in runs and promotions.
    os.environ["LOGNAME"] = "operator"
    with tempfile.TemporaryDirectory(prefix="nightscore-state-") as folder:
        home = Path(folder) / ".nightscore"
        said = nightscore("--version", home=home).split()[-1]
        if said != arguments.version:
            sys.exit(f"This checkout says that it is {said}, not {arguments.version}.")
        try:
            _use_release(home)
            output = Path(folder) / "state"
            _dump_databases(home, output)
        finally:
            nightscore("down", home=home)
        output.mkdir(exist_ok=True)
        _archive_files(home, output)
        (output / "release.json").write_text(
            _json(
                {
                    "version": arguments.version,
                    "commit": _git("rev-parse", "HEAD"),
                    "postgres": state.postgres_version(),
                }
            )
        )
        _require_anonymous(output, home)
        # The temporary folder may be on another disk.
        shutil.move(output, target)
    sizes = {path: path.stat().st_size for path in target.rglob("*") if path.is_file()}
    for path, size in sorted(sizes.items()):
        print(f"{size:9,} {path.relative_to(target)}")
    print(f"{sum(sizes.values()):9,} in all")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _use_release(home: Path) -> None:
    """Do what a user does in two days."""
    around = home.parent
    (around / "nightscore.yaml").write_text(CONFIGURATION.format(seed=0))
    nightscore("up", "--only", "postgres,s3,mlflow", home=home)
    for name in MODELS:
        synthetic_images.write_dataset(around / name, name)
        nightscore("dataset", "import", str(around / name), "--name", name, home=home)
    _draw_night(around / "night")
    for seed, night in enumerate(NIGHTS):
        # Another seed, or the second version would be the first again.
        (around / "nightscore.yaml").write_text(CONFIGURATION.format(seed=seed))
        for name in MODELS:
            trained = json.loads(nightscore("train", name, "--json", home=home))
            # Whatever the gate has said.
            nightscore("promote", name, str(trained["version"]), home=home)
        pictures = str(around / "night")
        nightscore("ingest", pictures, "--stream", STREAM, "--date", night, home=home)
        nightscore("score", STREAM, "--date", night, home=home)


def _draw_night(folder: Path) -> None:
    folder.mkdir()
    for number in range(3):
        for label in ("dark", "light"):
            picture = synthetic_images.shade(label, 1000 + number)
            (folder / f"{label}-{number}.png").write_bytes(picture)
        for kind in ("normal", "spot"):
            (folder / f"{kind}-{number}.png").write_bytes(
                synthetic_images.mould(kind, 1000 + number)
            )
    (folder / "broken.png").write_bytes(b"not an image")


def _dump_databases(home: Path, output: Path) -> None:
    """Keep what the analyst sees and the databases, of a running stack."""
    passwords, ports = _passwords(home), _ports(home)
    views = query(
        home,
        "SELECT table_name FROM information_schema.views WHERE table_schema = 'reporting'"
        " ORDER BY table_name",
    )
    (output / "databases").mkdir(parents=True)
    reporting = {}
    for view in (row["table_name"] for row in views):
        reporting[view] = sorted(query(home, f"SELECT * FROM reporting.{view}"), key=json.dumps)
    (output / "reporting.json").write_text(_json(reporting))
    server = Server(ports["postgres"], passwords["postgres"])
    for database in state.DATABASES:
        dump = state.PASSWORD_HASH.sub("{{hash:mlflow}}", server.dump(database))
        packed = lzma.compress(dump.encode(), preset=9)
        (output / "databases" / f"{database}.sql.xz").write_bytes(packed)


def _archive_files(home: Path, output: Path) -> None:
    """Keep the files of a state folder whose stack is down, and the release's SQL."""
    values = state.markers(home)
    values |= {f"{{{{password:{name}}}}}": secret for name, secret in _passwords(home).items()}
    for path in sorted((*home.iterdir(), *(home / "conf").iterdir())):
        # Not what a running stack alone has: its socket and the number of its process.
        if path.is_file() and path.suffix != ".pid":
            text = _with_markers(path.read_text(), values, _ports(home))
            target = output / "folder" / path.relative_to(home)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    with tarfile.open(output / "files.tar.xz", "w:xz", preset=9) as tar:
        for part in ("cache/programs", "s3"):
            for path in sorted((home / part).rglob("*")):
                inside = path.relative_to(home)
                if path.is_file() and not LEFT_OUT.intersection(inside.parts):
                    tar.add(path, inside, filter=_of_nobody)
    code = subprocess.run(
        ["git", "archive", "HEAD", "ml"], cwd=REPOSITORY, capture_output=True, check=True
    )
    (output / "code.tar.xz").write_bytes(lzma.compress(code.stdout, preset=9))
    for kind, files in (("migrations", state.migration_files()), ("reporting", state.view_files())):
        (output / "sql" / kind).mkdir(parents=True)
        for name, content in files.items():
            (output / "sql" / kind / name).write_bytes(content)
    (home.parent / "night").rename(output / "night")
    (home.parent / "nightscore.yaml").rename(output / "nightscore.yaml")


def _with_markers(text: str, values: Mapping[str, str], ports: Mapping[str, int]) -> str:
    for marker, value in values.items():
        text = text.replace(value, marker)
    for name, port in ports.items():
        text = re.sub(rf"(?<!\d){port}(?!\d)", f"{{{{port:{name}}}}}", text)
    return text


def _of_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o644
    return entry


def _passwords(home: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((home / "conf" / "passwords.json").read_text())
    return found


def _ports(home: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((home / "conf" / "ports.json").read_text())
    return found


def _require_anonymous(output: Path, home: Path) -> None:
    """Fail if a password or a folder of this machine is in what is kept.

    The programs' own files name the folder of the checkout that made them; see README.md.
    """
    unwanted = [*_passwords(home).values(), str(home.parent), str(Path.home())]
    for path in output.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = lzma.decompress(content) if path.suffix == ".xz" else content
            found = [text for text in unwanted if text.encode() in content]
            assert not found, f"{path.relative_to(output)} holds {found}"


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
