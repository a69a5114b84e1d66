"""What Postgres has recorded of a registered version, and whether a program matches it.

MLflow keeps the description of a program beside it, where no hash covers it: whoever changes the
threshold there would change a plant's alarms. Registration therefore records the description in
Nightscore's own tables too, and a program that is described differently is not loaded.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ml.database.connection import transaction
from ml.database.tables import ModelVersion
from ml.errors import DataError
from ml.program.info import ConvertedInfo, ProgramInfo


@dataclass(frozen=True)
class Registration:
    """The record of a registered version.

    Attributes:
        model: the model's name.
        version: the version's number.
        sha256: the hash of the program's file.
        fields: the fields of `ProgramInfo` in their JSON form.
        converted: the version's form for OpenVINO; None when none is recorded.
    """

    model: str
    version: int
    sha256: str
    fields: Mapping[str, Any]
    converted: ConvertedInfo | None = None

    @property
    def name(self) -> str:
        """MODEL/VERSION."""
        return f"{self.model}/{self.version}"

    def check(self, info: ProgramInfo, source: str) -> None:
        """Compare a description with the recorded one.

        Args:
            info: the description of the program.
            source: where it comes from, for messages.

        Raises:
            DataError: a field differs from what was recorded.
        """
        document = program_info_json(info)
        for name in sorted(document.keys() & self.fields.keys()):
            if document[name] != self.fields[name]:
                raise DataError(
                    f"The program of {self.model}/{self.version} has {name} {document[name]!r} in "
                    f"{source}; at its registration {self.fields[name]!r} was recorded.",
                    "Find out by whom it was changed; restore it, or promote another version.",
                )


def check_not_deleted(row: ModelVersion) -> None:
    """Check that retention has not deleted a version.

    Raises:
        DataError: it has; the message says when.
    """
    if row.deleted_at is not None:
        raise DataError(
            f"{row.model}/{row.version} was deleted from MLflow on {row.deleted_at:%Y-%m-%d}, as "
            "the limit `versions` of nightscore.yaml had passed. Its results stay.",
            f"`nightscore models` lists the versions; `nightscore train {row.model}` makes one.",
        )


def program_info_json(info: ProgramInfo) -> dict[str, Any]:
    """Return `info` as JSON represents it: tuples become lists."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(info)))
    return document


def load_registration(model: str, version: int) -> Registration:
    """Read the record of a version.

    Raises:
        DataError: nothing is recorded of the version, its columns contradict each other, or
            retention has deleted it.
        ServiceError: Postgres failed.
    """
    with transaction() as session:
        row = session.get(ModelVersion, (model, version))
        if row is None:
            raise DataError(
                f"{model}/{version} is not registered in nightscore.model_version.",
                f"Register a version with `nightscore train {model}`, which says what it is worth.",
            )
        check_not_deleted(row)
        # A version from before the column `program` existed has only the other columns.
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
