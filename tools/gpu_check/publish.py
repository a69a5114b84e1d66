"""Results as files of benchmarks/results/, without the paths of the machine that found them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.gpu_check.layout import REPOSITORY

STEPS = ("tests", "score", "train")
FOLDER = REPOSITORY / "benchmarks" / "results"
# The folders of an absolute path, but not those of a URL or of a relative path.
_FOLDERS = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s/'\"]+/)+")


class PublishError(Exception):
    """What was found is not for publication; the message says why."""


def publish(source: Path, target: Path = FOLDER) -> list[Path]:
    """Write each step's results of a folder as DATE-GPU-STEP.json.

    Args:
        source: the folder that a run wrote to.
        target: the folder that is read.

    Returns:
        The files that were written.

    Raises:
        PublishError: there is none, or it is a rehearsal.
    """
    documents = [_read(source / f"{step}.json") for step in STEPS]
    known = [document for document in documents if document is not None]
    if not known:
        raise PublishError(f"{source} holds none of {', '.join(f'{step}.json' for step in STEPS)}.")
    for document in known:
        if document["rehearsal"] or not document["machine"].get("gpu"):
            raise PublishError(f"{document['step']} is a rehearsal: its figures say nothing.")
    target.mkdir(parents=True, exist_ok=True)
    return [_write(document, target) for document in known]


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(document: Mapping[str, Any], target: Path) -> Path:
    day = document["runs"][-1]["started"].partition("T")[0]
    gpu = "-".join(document["machine"]["gpu"].lower().split())
    path = target / f"{day}-{gpu}-{document['step']}.json"
    path.write_text(json.dumps(_cleaned(document), indent=1) + "\n", encoding="utf-8")
    return path


def _cleaned(value: Any) -> Any:
    """The same with each absolute path, which is of one machine only, cut to its last name."""
    if isinstance(value, Mapping):
        return {key: _cleaned(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value
