"""docker/compose.backup.yaml, beside docker/compose.yaml."""

import re
import subprocess
from pathlib import Path

import yaml

DOCKER = Path(__file__).parents[3] / "docker"
FILE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
BACKUP = yaml.safe_load((DOCKER / "compose.backup.yaml").read_text())["services"]


def test_it_reaches_what_it_backs_up_and_holds_no_other_login():
    databases, objects = BACKUP["backup-databases"], BACKUP["backup-objects"]
    servers = {name for name, each in FILE["services"].items() if each["image"] == "postgres:18"}
    assert {"postgres", "metadata"} == servers
    for server in servers:
        assert set(FILE["services"][server]["networks"]) & set(databases["networks"])
    assert set(objects["networks"]) & set(FILE["services"]["s3"]["networks"])
    for service in (databases, objects):
        assert set(service["networks"]) <= FILE["networks"].keys()
        assert set(service["secrets"]) <= FILE["secrets"].keys()
        assert all(FILE["networks"][name] == {"internal": True} for name in service["networks"])


def test_the_dumps_are_made_by_programs_of_the_servers_own_version():
    assert BACKUP["backup-databases"]["image"] == FILE["services"]["postgres"]["image"]
    assert re.fullmatch(r"rclone/rclone:\d+\.\d+\.\d+", BACKUP["backup-objects"]["image"])


def test_the_password_file_has_a_line_for_each_server(tmp_path):
    """The entry point, with the paths of containers moved into a folder of the test."""
    *shell, script, name = BACKUP["backup-databases"]["entrypoint"]
    assert shell == ["sh", "-ec"]
    script = re.sub(r"/(run/secrets|tmp|backup\.sh)\b", rf"{tmp_path}\g<0>", script)
    for folder in ("run/secrets", "tmp"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/secrets/results_administrator").write_text("one")
    (tmp_path / "run/secrets/metadata_administrator").write_text("two")
    (tmp_path / "backup.sh").write_text('echo "$@"')
    command = [*shell, script.replace("$$", "$"), name, "check", "/backups"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "check /backups\n"
    file = tmp_path / "tmp/pgpass"
    assert file.read_text() == "postgres:*:*:postgres:one\nmetadata:*:*:postgres:two\n"
    assert file.stat().st_mode & 0o077 == 0
