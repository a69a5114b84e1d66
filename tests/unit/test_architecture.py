"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_ml_never_imports_airflow():
    files = list((REPOSITORY / "ml").rglob("*.py"))
    assert len(files) > 50
    assert [str(path) for path in files if "airflow" in _imports(path)] == []


def test_only_the_registry_imports_mlflow():
    files = (REPOSITORY / "ml").rglob("*.py")
    assert {path.parent.name for path in files if "mlflow" in _imports(path)} == {"registry"}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("ml.scoring.engine", {"torch", "openvino", "mlflow", "airflow", "sqlalchemy", "boto3"}),
        (
            "ml.scoring.run",
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
