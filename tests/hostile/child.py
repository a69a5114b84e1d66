"""Scores what it reads from its standard input through the real engine; `run` watches it.

A message is a JSON line and the bytes of the files it announces; the answer is a JSON line. The
files of a message are scored together, twice, with a classifier and a detector.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path

from ml.config.schema import Limits
from ml.images.rejection import Reason
from ml.program.info import ProgramInfo, sha256
from ml.program.program import Program
from ml.program.program_file import export
from ml.scoring.engine import Item, Prediction, Rejection, score
from ml.storage.download import DownloadRequest, DownloadResult

LIMITS = Limits()
MOST_LETTERS = 300


def programs(folder: Path) -> list[Program]:
    """A tiny classifier and a tiny detector, loaded as scoring does; exported where the folder does
    not have them yet."""
    made = []
    for name, architecture, classes, size in (
        ("classifier", "residual_network", ("a", "b", "c"), (16, 16)),
        ("detector", "anomaly_segmenter", ("normal", "anomalous"), (16, 24)),
    ):
        path = folder / f"{name}.pt2"
        if not path.exists():
            _export(path, architecture, classes, size)
        task = "anomaly" if name == "detector" else "classification"
        threshold = 0.5 if task == "anomaly" else None
        info = ProgramInfo(name, 1, task, classes, size, threshold, sha256(path))
        made.append(Program.load(path, info, "cpu"))
    return made


def _export(path: Path, architecture: str, classes: tuple[str, ...], size: tuple[int, int]) -> None:
    import numpy as np
    import torch

    from ml.models import build

    torch.manual_seed(0)
    network = build(architecture, size, classes, {"width": 4}).eval()
    noise = np.random.default_rng(0).integers(0, 256, (128, 3, *size), dtype=np.uint8)
    network.after_fit(torch.from_numpy(noise), torch.zeros(len(noise), dtype=torch.int64))
    export(network, path, size)


def scored(
    files: Sequence[tuple[str, bytes]], versions: Sequence[Program]
) -> list[Prediction | Rejection]:
    """What the engine makes of files (name, bytes) in memory."""
    items = [
        Item(date(2026, 1, 1), number, f"s3://bucket/{name}", str(number), len(content))
        for number, (name, content) in enumerate(files)
    ]

    def fetch(wanted: Iterable[DownloadRequest[Item]]) -> Iterator[DownloadResult[Item]]:
        for item, *_ in wanted:
            yield DownloadResult(item, files[item.image_id][1], item.etag)

    batches = score(items, versions, fetch, LIMITS)
    return [result for batch in batches for result in (*batch.predictions, *batch.rejections)]


def decision(result: Prediction | Rejection) -> tuple[str, str, tuple[float, ...]]:
    """The reason (empty when it is scored), the detail, and the numbers of a result; an
    AssertionError for anything that a user must never see."""
    if isinstance(result, Prediction):
        assert result.predicted_class
        numbers = (result.confidence, result.score, result.novelty)
        found = tuple(value for value in numbers if value is not None)
        assert found and all(math.isfinite(value) and 0 <= value <= 1 for value in found), found
        return "", "", found
    assert Reason(result.reason) in Reason
    assert result.detail and result.detail.isprintable(), result.detail
    assert len(result.detail) <= MOST_LETTERS, result.detail
    return result.reason, result.detail, ()


def outcomes(
    files: Sequence[tuple[str, bytes]], versions: Sequence[Program]
) -> list[tuple[str, str]]:
    """Reason and detail of each file, after every check; AssertionError says which one failed."""
    decisions = _decisions(files, versions)
    again = _decisions(files, versions)
    assert again == decisions, [
        pair for pair in zip(decisions, again, strict=True) if len(set(pair)) > 1
    ]
    return [found[0][:2] for found in decisions]


def _decisions(
    files: Sequence[tuple[str, bytes]], versions: Sequence[Program]
) -> list[tuple[tuple[str, str, tuple[float, ...]], ...]]:
    """The decision of each version on each file: exactly one, and the same reason by all."""
    found: dict[tuple[int, str], tuple[str, str, tuple[float, ...]]] = {}
    for result in scored(files, versions):
        key = result.item.image_id, result.model
        assert key not in found, f"two results for {key}"
        found[key] = decision(result)
    models = [version.info.model for version in versions]
    together = [tuple(found[number, model] for model in models) for number in range(len(files))]
    assert len(found) == len(files) * len(models)
    assert all(len({own[:2] for own in each}) == 1 for each in together)
    return together


def peak_bytes() -> int:
    """The most memory that this process has held. Not `ru_maxrss`, which begins with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    # A decoder's own messages must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    versions = programs(Path(sys.argv[1]))
    outcomes([("ready.jpg", b"")], versions)
    print(json.dumps({"peak": peak_bytes()}), file=answers)
    while line := sys.stdin.buffer.readline():
        files = [(name, sys.stdin.buffer.read(size)) for name, size in json.loads(line)]
        begun = time.process_time()
        try:
            if os.environ.get("HOSTILE_TEST") and any(
                content == b"crash me" for _, content in files
            ):
                exec(os.environ["HOSTILE_TEST"])  # to see that the parent notices
            answer = {"outcomes": outcomes(files, versions)}
        except Exception as error:
            answer = {"failure": f"{type(error).__name__}: {error}"[:1000]}
        # Half of it: the files were scored twice.
        answer |= {"cpu_s": (time.process_time() - begun) / 2, "peak": peak_bytes()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
