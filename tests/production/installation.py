"""docs/production.md, followed by a reader who has a Postgres, an S3 server and one machine."""

import random
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg2

from tests.production import services
from tests.production.services import HOST, Process, wait_until
from tests.support import production_page, synthetic_images
from tests.support.production_page import Block
from tests.support.tls import Authority

MODEL, STREAM, DATASET, NIGHT = "shades", "line", "shades", "2026-03-01"
IMAGES = 12

CONFIGURATION = """\
storage: s3://nightscore
streams:
  line:
    prefix: s3://nightscore/streams/line
    models: [shades]
    lookback_nights: 0
    shard_size: 5
    shards_per_task: 1
models:
  shades:
    task: classification
    dataset: shades
    architecture: residual_network
    input_size: [16, 16]
    options: {width: 8}
    holdout_share: 0.3
    training:
      cpu: {epochs: 2, batch_size: 32, learning_rate: 0.1}
    gate: {metric: accuracy, minimum: 0.7, max_drop: 0.05}
"""


class Installation:
    """The services and files of one reader, below one folder.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.conf = folder, folder / "conf"
        self.authority = Authority(folder)
        self.printed: dict[str, str] = {}
        self.processes: dict[str, Process] = {}
        # SeaweedFS's gRPC ports are 10,000 higher; the kernel gives connections those above 32,768.
        self._ports = random.SystemRandom().sample(range(20_000, 22_000), 7)
        s3, database, mlflow, airflow = self._ports[:4]
        self.airflow = f"https://{HOST}:{airflow}"
        self._mlflow = f"https://{HOST}:{mlflow}"
        self._database_port = database
        self._files: dict[str, str] = {}
        addresses, *self.blocks = production_page.path_blocks()
        values = {
            "CODE": str(production_page.REPOSITORY), "CONF": str(self.conf),
            "STATE": str(folder / "state"), "DATABASE": f"{HOST}:{database}",
            "S3": f"https://{HOST}:{s3}", "MLFLOW": self._mlflow, "AIRFLOW": self.airflow,
            "LISTEN": HOST, "DATASET": DATASET, "MODEL": MODEL, "STREAM": STREAM, "NIGHT": NIGHT,
            "PHOTOS": str(folder / "photos"),
        }  # fmt: skip
        self._addresses = production_page.with_values(addresses, values)

    def follow(self) -> None:
        """Run the blocks of the page, one after the other; does what it asks of the reader."""
        self._write_own_files()
        for block in self.blocks:
            if block.language != "sh":
                self._files[block.text.split("\n")[0]] = block.text
                if len(self._files) == 2:
                    self._start_postgres()
            elif block.is_service:
                self._start(block)
            else:
                self._before(block)
                self.printed[block.text] = self.run(block.text)
                self._after(block)

    def run(self, commands: str) -> str:
        """Run commands of the page in a new shell; returns what they print."""
        done = self._run(commands)
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fail(self, commands: str) -> str:
        """Run commands that fail; returns what they print."""
        done = self._run(commands)
        assert done.returncode != 0, done.stdout
        return done.stdout

    def _run(self, commands: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self._shell(commands), env=self._environment(), cwd=self.folder,
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def stop(self) -> None:
        """End everything, Postgres last."""
        database = self.processes.pop("postgres", None)
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait()
        if database:
            database.signal(signal.SIGINT)
            database.wait()

    def query(self, database: str, sql: str, *values: Any, **options: Any) -> list[tuple]:
        """Rows of a statement, as the administrator of Postgres."""
        login = {
            "host": HOST, "port": self._database_port, "user": "postgres", "dbname": database,
            "password": (self.conf / "postgres").read_text(),
            "sslmode": "verify-full", "sslrootcert": str(self.authority.path),
        }  # fmt: skip
        connection = psycopg2.connect(**login | options)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql, values)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1", "NIGHTSCORE_DEVICE": "cpu",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False", "DO_NOT_TRACK": "true",
        }  # fmt: skip

    def _shell(self, commands: str) -> list[str]:
        return ["bash", "-euo", "pipefail", "-c", f"{self._addresses}\n{commands}"]

    def _write_own_files(self) -> None:
        """What the page says that the reader brings."""
        self.conf.mkdir()
        self._copy("ca.pem", self.authority.path.read_text())
        for name in ("server.pem", "server.key"):
            self._copy(name, self.authority.server.read_text())
        self._copy("nightscore.yaml", CONFIGURATION)
        self._copy("postgres", secrets.token_hex(16))
        photos = self.folder / "photos"
        synthetic_images.write_dataset(photos / DATASET, DATASET)
        (photos / NIGHT).mkdir()
        for number in range(IMAGES):
            label = ("dark", "light")[number % 2]
            content = synthetic_images.shade(label, 1000 + number)
            (photos / NIGHT / f"{label}-{number}.png").write_bytes(content)

    def _copy(self, name: str, content: str) -> None:
        (self.conf / name).touch(0o600)
        (self.conf / name).write_text(content)

    def _start_postgres(self) -> None:
        settings, access = self._files.values()
        password = (self.conf / "postgres").read_text()
        self.processes["postgres"] = services.postgres(
            self.folder, self._database_port, self.authority, settings, access, password
        )

    def _before(self, block: Block) -> None:
        if "prepare buckets" in block.text:
            ports = [self._ports[0], *self._ports[4:]]
            process, keys = services.seaweedfs(self.folder, ports, self.authority)
            self.processes["s3"] = process
            for name, lines in keys.items():
                self._copy(f"s3-{name}.env", lines)
        if "nightscore doctor" in block.text:
            self._wait_for_airflow()

    def _after(self, block: Block) -> None:
        for dag_id in (f"retrain_{MODEL}", f"score_{STREAM}"):
            if f"dags trigger {dag_id.split('_')[0]}_" in block.text:
                self._wait_for_run(dag_id)

    def _start(self, block: Block) -> None:
        program, command = block.text.splitlines()[1].split()[:2]
        name = f"{program}-{command}"
        self.processes[name] = Process(
            self._shell(block.text), self.folder / f"{name}.log", self._environment()
        )
        if program == "mlflow":
            self._wait(lambda: services.is_up(f"{self._mlflow}/health", self.authority), "MLflow")

    def _wait(self, condition: Any, what: str) -> None:
        def is_so() -> bool:
            for process in self.processes.values():
                process.require_alive()
            return bool(condition())

        wait_until(is_so, f"{what} is not there: see the logs in {self.folder}")

    def _wait_for_airflow(self) -> None:
        """Until Airflow's processes are healthy and its list has both DAGs."""
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")

        def is_healthy() -> bool:
            answer = services.get(f"{self.airflow}/api/v2/monitor/health", self.authority)
            health = answer.json() if answer else {}
            return bool(health) and all(health[part]["status"] == "healthy" for part in parts)

        self._wait(is_healthy, "Airflow")
        self._wait(lambda: len(self.query("airflow", "SELECT FROM serialized_dag")) >= 2, "the DAG")

    def _wait_for_run(self, dag_id: str) -> None:
        states: list[str] = []

        def has_ended() -> bool:
            states[:] = [
                state
                for (state,) in self.query(
                    "airflow", "SELECT state FROM dag_run WHERE dag_id = %s", dag_id
                )
            ]
            return bool(states) and states[-1] in ("success", "failed")

        self._wait(has_ended, f"the end of {dag_id}")
        assert states == ["success"], self._task_logs(dag_id)

    def _task_logs(self, dag_id: str) -> str:
        files = (self.folder / "state" / "airflow" / "logs" / f"dag_id={dag_id}").rglob("*.log")
        return "\n".join(f"{file}\n{file.read_text()[-3000:]}" for file in sorted(files))
