"""New forms for OpenVINO of a model's registered versions."""

import logging
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from ml.database.connection import transaction
from ml.database.tables import CHALLENGER, CHAMPION, PREVIOUS, ModelVersion
from ml.errors import NightscoreError
from ml.registry import artifacts, programs, versions
from ml.registry.converted import log_form, stored_form
from ml.registry.record import Registration, load_registration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did with a version: `made` says whether its form for OpenVINO is a new one,
    `openvino` which version of it made the form; None when it cannot run the program.
    """

    model: str
    version: int
    aliases: tuple[str, ...]
    openvino: str | None
    made: bool


def convert(model: str) -> list[Conversion]:
    """Give champion, challenger and previous of a model a form made by this machine's OpenVINO.

    A version that has one, whole and in its place, keeps it. The new form is stored in MLflow under
    a name of its own before Postgres names it, so a worker always finds the one that it is told of.

    Raises:
        DataError: a version is not registered, or its program is not what was registered.
        ServiceError: Postgres or MLflow failed, or there is no room for a copy.
    """
    aliases: dict[int, list[str]] = {}
    for alias in (CHAMPION, CHALLENGER, PREVIOUS):
        version = versions.version_of_alias(model, alias)
        if version is not None:
            aliases.setdefault(version, []).append(alias)
    return [
        _convert(load_registration(model, version), tuple(named))
        for version, named in aliases.items()
    ]


def _convert(registration: Registration, aliases: tuple[str, ...]) -> Conversion:
    from ml.program import conversion, selection

    done = partial(Conversion, registration.model, registration.version, aliases)
    path, info = programs.fetch(registration)
    if registration.converted and registration.converted.openvino == conversion.version():
        try:
            selection.check_converted(stored_form(registration), info)
            return done(registration.converted.openvino, made=False)
        except NightscoreError as error:
            log.warning("%s", error)
    form = selection.convert_program(path, info)
    if form is None:
        return done(None, made=False)
    converted = log_form(artifacts.model_id(registration), form)
    with transaction() as session:
        session.execute(
            sa.update(ModelVersion)
            .where(
                ModelVersion.model == registration.model,
                ModelVersion.version == registration.version,
            )
            .values(openvino_sha256=converted.sha256, openvino_version=converted.openvino)
        )
    return done(converted.openvino, made=True)
