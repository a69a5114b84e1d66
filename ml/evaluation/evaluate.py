"""A program measured on labelled images."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ml.config.schema import MAX_PIXELS
from ml.data.archive import labelled
from ml.errors import DataError
from ml.evaluation.metrics import anomaly_metrics, classification_metrics
from ml.images.decoding import decode
from ml.images.rejection import RejectedError
from ml.images.resizing import resize
from ml.parallel import batched, parallel_map
from ml.program.info import CLASSIFICATION, NORMAL
from ml.program.program import Outputs, Program

BATCH = 128


@dataclass(frozen=True)
class Evaluation:
    """Metrics and what they came from.

    `labels` are indices into the classes, or 1 for anomalous and 0 for normal; `outputs` are
    without heat maps, which are made again for the few images that are shown.
    """

    metrics: dict[str, Any]
    labels: np.ndarray
    outputs: Outputs

    @property
    def values(self) -> np.ndarray:
        """What drift is measured on: the anomaly scores, or the confidences."""
        if len(self.outputs.scores):
            return self.outputs.scores
        return self.outputs.probabilities.max(axis=1)

    @property
    def answers(self) -> np.ndarray:
        """What the program says of each image, to compare with `labels`: int (N,)."""
        if len(self.outputs.scores):
            return (self.outputs.scores >= self.metrics["threshold"]).astype(np.int64)
        return self.outputs.probabilities.argmax(axis=1)


def label_indices(program: Program, labels: Sequence[str]) -> np.ndarray:
    """Labels as the program counts them; for task anomaly everything not `normal` is anomalous.

    Raises DataError for a class the program does not know.
    """
    if program.info.task != CLASSIFICATION:
        return np.array([int(label != NORMAL) for label in labels], dtype=np.int64)
    known = {name: index for index, name in enumerate(program.info.classes)}
    if unknown := sorted(set(labels) - known.keys()):
        raise DataError(
            f"{program.info.name} does not know the class {', '.join(unknown[:5])}.",
            f"Its classes: {', '.join(program.info.classes)}.",
        )
    return np.array([known[label] for label in labels], dtype=np.int64)


def evaluate(program: Program, pixels: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Measure on uint8 pixels (N, 3, H, W) and int labels (N,).

    Metrics of classification: n, accuracy, macro_f1, per_class; of anomaly: n, auroc,
    average_precision, threshold, tpr, tnr at the threshold stored with the version.
    """
    batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
    outputs = list(_predicted(program, batches))
    return _measured(program, _joined(outputs), labels)


def evaluate_files(
    program: Program, path: Path, split: str, on_progress: Callable[[int], None] = lambda done: None
) -> Evaluation:
    """Measure on a split of a folder or tar laid out SPLIT/CLASS/FILE, with bounded memory.

    `on_progress` is called with the number of images done so far.

    Raises:
        DataError: there is no such image, or one of them cannot be decoded.
    """
    size = program.info.input_size

    def read(image: Any) -> tuple[np.ndarray, str]:
        try:
            found = decode(image.content, max_pixels=MAX_PIXELS, target_size=size)
        except RejectedError as rejected:
            name = f"{image.split}/{image.label}/{image.name}"
            raise DataError(f"{path}: {name} cannot be decoded: {rejected}") from None
        return resize(found, size), image.label

    images = (image for image in labelled(path) if image.split == split)
    outputs: list[Outputs] = []
    labels: list[str] = []

    def batches() -> Iterator[np.ndarray]:
        for batch in batched(parallel_map(read, images, threads=4, buffer_size=2 * BATCH), BATCH):
            labels.extend(label for _, label in batch)
            yield np.stack([pixels for pixels, _ in batch])

    for done in _predicted(program, batches()):
        outputs.append(done)
        on_progress(sum(len(batch) for batch in outputs))
    if not labels:
        raise DataError(f"{path} holds no image laid out {split}/CLASS/FILE.")
    return _measured(program, _joined(outputs), label_indices(program, labels))


def predict(program: Program, pixels: np.ndarray, *, heatmaps: bool = False) -> Outputs:
    """Outputs for uint8 pixels (N, 3, H, W)."""
    outputs = program.predict(pixels)
    return outputs if heatmaps else replace(outputs, heatmaps=np.empty(0, dtype=np.float32))


def _predicted(program: Program, batches: Iterable[np.ndarray]) -> Iterator[Outputs]:
    cores = os.cpu_count() or 1
    return parallel_map(partial(predict, program), batches, threads=cores, buffer_size=cores + 1)


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    return Outputs(
        probabilities=np.concatenate([batch.probabilities for batch in outputs]),
        scores=np.concatenate([batch.scores for batch in outputs]),
    )


def _measured(program: Program, outputs: Outputs, labels: np.ndarray) -> Evaluation:
    info = program.info
    if info.task == CLASSIFICATION:
        metrics = classification_metrics(outputs.probabilities, labels, info.classes)
    else:
        metrics = anomaly_metrics(outputs.scores, labels == 1, info.threshold)
    return Evaluation(metrics, labels, outputs)
