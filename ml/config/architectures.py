"""The architectures and their options, read from the files of `ml/models/` without importing them.

The configuration is checked where torch is not imported, such as in a DAG file. So an architecture
declares its options as a literal at the top of its file::

    OPTIONS = {
        "width": {"type": "int", "default": 48, "minimum": 1},
        "smoothing": {"type": "float", "default": 0.2, "minimum": 0, "maximum": 1},
        "flips": {"type": "bool", "default": True},
        "synthetic": {"type": "modules", "folder": "anomalies"},
    }

Its `build` function takes each of them as a keyword argument.
"""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from ml.errors import ConfigurationError

_MODELS = Path(__file__).parents[1] / "models"


class Option(BaseModel):
    """The declaration of an option.

    Attributes:
        type: Type of the value. `modules` is a list of names of files in a folder of `ml/models/`,
            at least one; by default it holds each of them once.
        default: The value if `nightscore.yaml` does not name the option.
        minimum: Smallest number allowed, if there is one.
        maximum: Largest number allowed, if there is one.
        folder: Of `modules`, the folder's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["int", "float", "bool", "modules"]
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    folder: str = ""

    def field(self) -> Any:
        """Return the type and the default of a field of a pydantic model for this option."""
        if self.type == "modules":
            names = module_names(_MODELS / self.folder)
            if not names:
                raise ValueError(f"there is no folder {self.folder!r} with Python files")
            # mypy does not know types that are made at run time.
            name = Literal[tuple(names)]  # type: ignore[valid-type]
            return list[name], Field(names, min_length=1)  # type: ignore[valid-type]
        number: Any = {"int": int, "float": float, "bool": bool}[self.type]
        return Annotated[number, Field(ge=self.minimum, le=self.maximum)], self.default


def module_names(folder: Path) -> list[str]:
    """Return the names of a folder's Python files, sorted and without `__init__`."""
    return sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def architectures() -> list[str]:
    """Return the names of the architectures, which are the files of `ml/models/`."""
    return module_names(_MODELS)


@cache
def options_model(architecture: str) -> type[BaseModel]:
    """Return a pydantic model whose fields are the options of an architecture.

    Raises:
        ConfigurationError: The architecture's file does not declare its options as `Option` says.
    """
    path = _MODELS / f"{architecture}.py"
    try:
        declared = TypeAdapter(dict[str, Option]).validate_python(_read_literal(path, "OPTIONS"))
        fields: dict[str, Any] = {name: option.field() for name, option in declared.items()}
        strict = ConfigDict(extra="forbid", strict=True, validate_default=True)
        model = create_model("Options", __config__=strict, **fields)
        model()  # checks the defaults
    except (ValueError, SyntaxError) as error:
        raise ConfigurationError(
            f"{path} does not declare its options: {error}",
            "ml/config/architectures.py says what a declaration looks like.",
        ) from error
    return model


def complete_options(architecture: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of an architecture: those given, and the defaults of the others.

    Raises:
        ConfigurationError: An option is unknown, or its value is not allowed.
    """
    model = options_model(architecture)
    try:
        return dict(model.model_validate(options))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        ]
        raise ConfigurationError(
            f"Architecture {architecture!r} refused its options: {'; '.join(problems)}.",
            f"Known: {', '.join(model.model_fields)}.",
        ) from None


def _read_literal(path: Path, name: str) -> Any:
    """Return the value of a module-level constant, which the file assigns as a literal."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return ast.literal_eval(value)
    raise ValueError(f"there is no {name} = ...")
