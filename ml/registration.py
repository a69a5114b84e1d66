"""What Postgres holds of a registered version, and whether a program fits it.

MLflow keeps what is recorded of a program beside it, where no hash covers it: whoever changes the
threshold there would move a plant's alarms. So registration records it in our own tables as well,
and nothing is loaded that says otherwise.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ml import registry
from ml.database import session
from ml.device import Device
from ml.errors import DataError, NightscoreError
from ml.program_info import ConvertedInfo, ProgramInfo
from ml.tables import CHALLENGER, CHAMPION, PREVIOUS, ModelVersion

if TYPE_CHECKING:
    from ml.program import Program

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """What was recorded of a version: its file's SHA-256, fields of `ProgramInfo` in their JSON
    form, and its form for OpenVINO if one is recorded."""

    model: str
    version: int
    sha256: str
    fields: Mapping[str, Any]
    converted: ConvertedInfo | None = None

    @property
    def name(self) -> str:
        return f"{self.model}/{self.version}"

    def check(self, info: ProgramInfo, where: str) -> None:
        """Raise DataError unless everything that `info` says is what was recorded; `where` names
        the place that it is from."""
        found = described(info)
        for name in sorted(found.keys() & self.fields.keys()):
            if found[name] != self.fields[name]:
                raise DataError(
                    f"The program of {self.model}/{self.version} has {name} {found[name]!r} in "
                    f"{where}; at its registration {self.fields[name]!r} was recorded.",
                    "Find out by whom it was changed; restore it, or promote another version.",
                )


def described(info: ProgramInfo) -> dict[str, Any]:
    """`info` as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(info)))
    return found


def of(model: str, version: int) -> Registration:
    """What was recorded of a version; raises DataError when nothing was."""
    with session() as current:
        row = current.get(ModelVersion, (model, version))
        if row is None:
            raise DataError(
                f"{model}/{version} is not registered in nightscore.model_version.",
                f"Register a version with `nightscore train {model}`, which says what it is worth.",
            )
        # Of a version from before there was `program`, the columns are all there is.
        fields = (row.program or {}) | {
            "model": model,
            "version": version,
            "task": row.task,
            "classes": row.classes,
            "threshold": row.threshold,
            "novelty_threshold": row.novelty_threshold,
            "synthetic": row.synthetic,
            "sha256": row.program_sha256,
        }
        if row.program and row.program != fields:
            different = min(name for name in fields if row.program.get(name) != fields[name])
            raise DataError(
                f"nightscore.model_version contradicts itself about the {different} of "
                f"{model}/{version}.",
                "Find out by whom it was changed, or promote another version.",
            )
        converted = None
        if row.openvino_sha256 and row.openvino_version:
            converted = ConvertedInfo(row.openvino_sha256, row.openvino_version)
        return Registration(model, version, row.program_sha256, fields, converted)


def load(model: str, version: int, device: Device) -> "Program":
    """The program of a registered version, on a device; on this machine a copy is kept. For a CPU
    its recorded form for OpenVINO is fetched, too.

    Raises
    ------
    DataError: the version is not registered, its program, its form or what is recorded of it was
        changed, or they do not fit each other.
    ServiceError: Postgres or MLflow failed, or there is no room for a copy.
    """
    from ml.program import Program

    registration = of(model, version)
    path, info = registry.fetch(registration)
    form = registry.fetch_form(registration) if device == "cpu" else None
    return Program.load(path, info, device, form)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did with a version: `made` says whether its form for OpenVINO is a new one,
    `openvino` which version of it made the form; None when it cannot run the program."""

    model: str
    version: int
    aliases: tuple[str, ...]
    openvino: str | None
    made: bool


def convert(model: str) -> list[Conversion]:
    """Give champion, challenger and previous of a model a form made by this machine's OpenVINO.

    A version that has one, whole and in its place, keeps it. The new form is stored in MLflow under
    a name of its own before Postgres names it, so a worker always finds the one that it is told of.

    Raises
    ------
    DataError: a version is not registered, or its program is not what was registered.
    ServiceError: Postgres or MLflow failed, or there is no room for a copy.
    """
    aliases: dict[int, list[str]] = {}
    for alias in (CHAMPION, CHALLENGER, PREVIOUS):
        version = registry.version_of_alias(model, alias)
        if version is not None:
            aliases.setdefault(version, []).append(alias)
    return [_convert(of(model, version), tuple(named)) for version, named in aliases.items()]


def _convert(registration: Registration, aliases: tuple[str, ...]) -> Conversion:
    from ml import conversion, program

    done = partial(Conversion, registration.model, registration.version, aliases)
    path, info = registry.fetch(registration)
    if registration.converted and registration.converted.openvino == conversion.version():
        try:
            program.check_form(registry.stored_form(registration), info)
            return done(registration.converted.openvino, made=False)
        except NightscoreError as error:
            log.warning("%s", error)
    form = program.convert(path, info)
    if form is None:
        return done(None, made=False)
    converted = registry.log_form(registry.model_id(registration), form)
    with session() as current:
        current.execute(
            sa.update(ModelVersion)
            .where(
                ModelVersion.model == registration.model,
                ModelVersion.version == registration.version,
            )
            .values(openvino_sha256=converted.sha256, openvino_version=converted.openvino)
        )
    return done(converted.openvino, made=True)
