"""What Postgres holds of a registered version, and whether a program fits it.

MLflow keeps what is recorded of a program beside it, where no hash covers it: whoever changes the
threshold there would move a plant's alarms. So registration records it in our own tables as well,
and nothing is loaded that says otherwise.
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
    """What was recorded of a version: its file's SHA-256, fields of `ProgramInfo` in their JSON
    form, and its form for OpenVINO if one is recorded.
    """

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
        the place that it is from.
        """
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


def load_registration(model: str, version: int) -> Registration:
    """What was recorded of a version; raises DataError when nothing was."""
    with transaction() as session:
        row = session.get(ModelVersion, (model, version))
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
