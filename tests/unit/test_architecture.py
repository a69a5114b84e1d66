"""What a module loads, and that no statement is left over; `make lint` checks who imports whom."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("ml.scoring.engine", {"torch", "openvino", "mlflow", "airflow", "sqlalchemy", "boto3"}),
        (
            "ml.scoring.runs",
            {"torch", "mlflow", "numpy", "cv2", "PIL", "boto3", "botocore", "alembic"},
        ),
        ("ml.report.nightly", {"torch", "mlflow", "numpy", "cv2", "PIL", "boto3", "matplotlib"}),
        ("ml.scoring.shard", {"torch", "mlflow", "airflow", "sklearn", "matplotlib"}),
        ("ml.cli", {"torch", "mlflow", "airflow", "sqlalchemy", "numpy", "boto3"}),
        ("ml.config.schema", {"torch", "mlflow", "airflow", "sqlalchemy", "numpy", "boto3"}),
    ],
)
def test_what_a_module_loads_stays_light(module, without):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {without!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_statements_in_sql_files_are_all_used():
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (REPOSITORY / "ml").rglob("*.py")
    )
    statements = list((REPOSITORY / "ml").rglob("sql/*.sql"))
    assert len(statements) > 20
    for path in statements:
        name = path.relative_to(REPOSITORY / "ml").with_suffix("").as_posix()
        assert f'"{name}"' in sources or path.name in sources, name
