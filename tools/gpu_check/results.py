"""Results of a step as JSON, part by part, so that a step that was cut off is continued.

    {"form": 1, "step": "score", "code": "1f0c...", "rehearsal": false, "machine": {...},
     "complete": false, "left_out": {"ray_data": "the package ray is not there"},
     "runs": [{"started": "2026-01-01T00:00:00+00:00", "seconds": 12.5, "ended": "cut off"}],
     "parts": {"spill": {"status": "done", "seconds": 50.1, "result": {...}}}}

Earlier results count only for the same code, GPU and kind of run. What was found is written to the
folder that comes back, and kept in the tree, where the next run of a machine that stays finds it.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.gpu_check.layout import REPOSITORY

FORM = 1
DONE, PASSED, FAILED, SKIPPED = "done", "passed", "failed", "skipped"
FINISHED, CUT_OFF = "finished", "cut off"
_CODE = ("ml/**/*", "benchmarks/**/*.py", "tests/gpu/*.py", "nightscore.yaml")


class Results:
    """What a step has found so far; `folders` are written to, and read from, the first one first.

    Args:
        machine: as `benchmarks.machine.describe`; `gpu` must be the same for results to be
            continued.
    """

    def __init__(
        self, step: str, folders: Sequence[Path], machine: Mapping[str, Any], *, rehearsal: bool
    ) -> None:
        self.paths = [folder / f"{step}.json" for folder in folders]
        self._started = time.monotonic()
        self.document: dict[str, Any] = {
            "form": FORM,
            "step": step,
            "code": code_version(),
            "rehearsal": rehearsal,
            "machine": dict(machine),
            "complete": False,
            "left_out": {},
            "runs": [],
            "parts": {},
        }
        for path in self.paths:
            earlier = _read(path)
            if earlier is not None and _identity(earlier) == _identity(self.document):
                self.document |= {key: earlier[key] for key in ("left_out", "runs", "parts")}
                break
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.document["runs"].append({"started": now, "seconds": 0.0, "ended": CUT_OFF})
        self.write()

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The parts so far: name → status, seconds and figures."""
        found: dict[str, dict[str, Any]] = self.document["parts"]
        return found

    def has(self, part: str) -> bool:
        """Whether a part needs no further run."""
        return self.parts.get(part, {}).get("status") in (DONE, PASSED)

    def record(self, part: str, status: str, seconds: float, **details: Any) -> None:
        """Keep what became of a part, at once."""
        self.parts[part] = {"status": status, "seconds": round(seconds, 2), **details}
        self.write()

    def leave_out(self, name: str, reason: str) -> None:
        """Say by name what is not measured, and why."""
        self.document["left_out"][name] = reason
        self.write()

    def finish(self, *, complete: bool) -> None:
        """The end of a run that was not killed; `complete` when nothing is missing."""
        self.document["complete"] = complete
        self.document["runs"][-1]["ended"] = FINISHED if complete else CUT_OFF
        self.write()

    def write(self) -> None:
        """Write to all folders, each file whole or not at all."""
        self.document["runs"][-1]["seconds"] = round(time.monotonic() - self._started, 1)
        text = json.dumps(self.document, indent=1) + "\n"
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    """A document that can be continued; a damaged one, or one of another form, is begun anew."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("form") == FORM:
            return found
    return None


def _identity(document: Mapping[str, Any]) -> tuple[Any, ...]:
    known = [document.get(key) for key in ("form", "step", "code", "rehearsal")]
    return (*known, document.get("machine", {}).get("gpu"))


def code_version(root: Path = REPOSITORY) -> str:
    """A hash of the code that is measured; the machine has no git history to ask."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _CODE for path in root.glob(pattern)}):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
