"""New OpenVINO forms for the registered versions of a model."""

import logging
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from ml.database.connection import transaction
from ml.database.tables import CHALLENGER, CHAMPION, PREVIOUS, ModelVersion
from ml.errors import NightscoreError
from ml.registry import artifacts, programs, versions
from ml.registry.openvino_models import download_openvino_model, log_openvino_model
from ml.registry.registration import Registration, load_registration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did with a version.

    Attributes:
        model: the model's name.
        version: the version's number.
        aliases: the aliases that name the version.
        openvino: the OpenVINO version that made its form; None when OpenVINO cannot run the
            program.
        made: whether the form is a new one.
    """

    model: str
    version: int
    aliases: tuple[str, ...]
    openvino: str | None
    made: bool


def convert(model: str) -> list[Conversion]:
    """Convert champion, challenger and previous of a model with this machine's OpenVINO.

    A version keeps the form that it has if that is intact in MLflow and was made by the same
    version of OpenVINO. A new form is stored in MLflow under a name of its own before Postgres
    names it, so a worker always finds the form that Postgres names.

    Returns:
        One result per version that has an alias.

    Raises:
        DataError: a version is not registered, or its program is not what was registered.
        ServiceError: Postgres or MLflow failed, or there is no room for the cached files.
    """
    aliases: dict[int, list[str]] = {}
    for alias in (CHAMPION, CHALLENGER, PREVIOUS):
        version = versions.version_of_alias(model, alias)
        if version is not None:
            aliases.setdefault(version, []).append(alias)
    return [
        _convert(load_registration(model, version), tuple(names))
        for version, names in aliases.items()
    ]


def _convert(registration: Registration, aliases: tuple[str, ...]) -> Conversion:
    from ml.program import conversion, selection

    result = partial(Conversion, registration.model, registration.version, aliases)
    path, info = programs.fetch(registration)
    if registration.converted and registration.converted.openvino == conversion.version():
        try:
            selection.check_converted(download_openvino_model(registration), info)
            return result(registration.converted.openvino, made=False)
        except NightscoreError as error:
            log.warning("%s", error)
    content = selection.convert_program(path, info)
    if content is None:
        return result(None, made=False)
    converted = log_openvino_model(artifacts.logged_model_id(registration), content)
    with transaction() as session:
        session.execute(
            sa.update(ModelVersion)
            .where(
                ModelVersion.model == registration.model,
                ModelVersion.version == registration.version,
            )
            .values(openvino_sha256=converted.sha256, openvino_version=converted.openvino)
        )
    return result(converted.openvino, made=True)
