"""The compose file, running: a copy of docker/ with secrets and a configuration of its own."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ml.settings import Settings
from ml.stack.airflow_client import AirflowApi

REPOSITORY = Path(__file__).parents[2]
IMAGES = ("scorer", "server", "trainer")
PROJECT = "nightscoretest"


def run(*command: str | Path, **options: Any) -> str:
    """Run a command to its end; returns its standard output."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def version() -> str:
    """The version of pyproject.toml, which is the images' tag."""
    lines = (REPOSITORY / "pyproject.toml").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("version"))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Composition:
    """Containers of the compose file, under a project name of their own.

    Args:
        folder: gets the copy of docker/.
        configuration: the text of nightscore.yaml.
        variables: variables of the compose file.
    """

    def __init__(self, folder: Path, configuration: str, **variables: str) -> None:
        self.folder = folder / "docker"
        kept = shutil.ignore_patterns("secrets", "config")
        shutil.copytree(REPOSITORY / "docker", self.folder, ignore=kept)
        (self.folder / "config").mkdir()
        self.configure(configuration)
        self.ports = {"AIRFLOW_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
        self.variables = {
            **self.ports,
            "AIRFLOW_URL": f"http://127.0.0.1:{self.ports['AIRFLOW_PORT']}",
            "NIGHTSCORE_VERSION": version(),
            "COMPOSE_PROJECT_NAME": PROJECT,
            **variables,
        }
        run(self.folder / "make-secrets.sh")

    def configure(self, text: str) -> None:
        """Write nightscore.yaml, as an operator's editor does."""
        new = self.folder / "config" / "new.yaml"
        new.write_text(text)
        new.chmod(0o644)
        new.rename(self.folder / "config" / "nightscore.yaml")

    def compose(self, *arguments: str, timeout_s: float = 900) -> str:
        """Run `docker compose` on the file."""
        modern = shutil.which("docker") and not subprocess.run(
            ["docker", "compose", "version"], capture_output=True
        ).returncode  # fmt: skip
        command = ["docker", "compose"] if modern else ["docker-compose"]
        environment = os.environ | self.variables
        return run(*command, *arguments, cwd=self.folder, env=environment, timeout=timeout_s)

    def up(self, **scale: int) -> None:
        """Start all services; `worker=2` starts two containers of one."""
        scaled = [part for name, count in scale.items() for part in ("--scale", f"{name}={count}")]
        self.compose("up", "--detach", *scaled)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, those that have ended included."""
        labels = (f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}")
        filters = [part for label in labels for part in ("--filter", f"label={label}")]
        return run("docker", "ps", "--all", "--quiet", "--no-trunc", *filters).split()

    def inspect(self, service: str) -> list[dict[str, Any]]:
        """What Docker says of a service's containers."""
        return json.loads(run("docker", "inspect", *self.containers(service)))

    def nightscore(self, *arguments: str, folder: Path | None = None) -> str:
        """Run the command line in the service `cli`; `folder` is mounted as /data."""
        mounted = ("--volume", f"{folder}:/data:ro") if folder else ()
        return self.compose("run", "--rm", "-T", *mounted, "cli", "nightscore", *arguments)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query by the analyst."""
        return json.loads(self.nightscore("sql", "--json", sql))

    def secret(self, name: str) -> str:
        """A password or key that make-secrets.sh has drawn."""
        return (self.folder / "secrets" / "drawn" / name).read_text()

    def airflow(self) -> AirflowApi:
        """A client of the published API of Airflow, not yet logged in."""
        return AirflowApi(
            Settings().model_copy(
                update={
                    "airflow_url": self.variables["AIRFLOW_URL"],
                    "airflow_username": "admin",
                    "airflow_password": SecretStr(self.secret("airflow")),
                }
            )
        )

    def down(self) -> None:
        """Remove the containers, the networks and the volumes."""
        self.compose("down", "--volumes", "--timeout", "20", "--remove-orphans")
