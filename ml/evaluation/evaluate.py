"""A program measured on labelled images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ml.config.schema import MAX_PIXELS
from ml.cores import usable_cores
from ml.data.archive import LabelledImage, labelled_images
from ml.errors import DataError
from ml.evaluation.metrics import anomaly_metrics, classification_metrics
from ml.images.decoding import decode
from ml.images.rejection import RejectedError
from ml.images.resizing import resize
from ml.parallel import batched, parallel_map
from ml.program.info import CLASSIFICATION, NORMAL
from ml.program.program import Outputs, Program


@dataclass(frozen=True)
class Evaluation:
    """A program's metrics, and what they were computed from.

    Attributes:
        metrics: see `evaluate`.
        labels: int64 (N,), indices into the classes; of an anomaly model 1 for anomalous images.
        outputs: the program's outputs, without anomaly maps, which would take much memory.
    """

    metrics: dict[str, Any]
    labels: np.ndarray
    outputs: Outputs

    @property
    def drift_values(self) -> np.ndarray:
        """The values that drift is measured on, float (N,): anomaly scores, or confidences."""
        if len(self.outputs.scores):
            return self.outputs.scores
        confidences: np.ndarray = self.outputs.probabilities.max(axis=1)
        return confidences

    @property
    def predictions(self) -> np.ndarray:
        """The predicted label of each image, int64 (N,), to compare with `labels`."""
        predictions: np.ndarray
        if len(self.outputs.scores):
            predictions = (self.outputs.scores >= self.metrics["threshold"]).astype(np.int64)
        else:
            predictions = self.outputs.probabilities.argmax(axis=1)
        return predictions


def label_indices(program: Program, labels: Sequence[str]) -> np.ndarray:
    """Map labels to a program's indices; for the task `anomaly`, all but `normal` are anomalous.

    Returns:
        int64 (N,).

    Raises:
        DataError: the program does not know a class.
    """
    if program.info.task != CLASSIFICATION:
        return np.array([int(label != NORMAL) for label in labels], dtype=np.int64)
    indices = {name: index for index, name in enumerate(program.info.classes)}
    if unknown := sorted(set(labels) - indices.keys()):
        raise DataError(
            f"{program.info.name} does not know the class {', '.join(unknown[:5])}.",
            f"Its classes: {', '.join(program.info.classes)}.",
        )
    return np.array([indices[label] for label in labels], dtype=np.int64)


def evaluate(program: Program, pixels: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Measure a program.

    Args:
        program: the program.
        pixels: uint8 (N, 3, H, W).
        labels: int64 (N,), see `label_indices`.

    Returns:
        An evaluation with these metrics: for classification n, accuracy, macro_f1, per_class; for
        anomaly n, auroc, average_precision, threshold, tpr, tnr at the program's threshold.
    """
    size = program.batch_size
    batches = (pixels[start : start + size] for start in range(0, len(pixels), size))
    outputs = list(_predict_batches(program, batches))
    return _evaluation(program, _concatenate(outputs), labels)


def evaluate_files(
    program: Program, path: Path, split: str, on_progress: Callable[[int], None] = lambda done: None
) -> Evaluation:
    """Measure a program on image files, with bounded memory.

    Args:
        program: the program.
        path: a folder or tar laid out SPLIT/CLASS/FILE.
        split: which split to measure on.
        on_progress: is called with the number of images done so far.

    Returns:
        See `evaluate`.

    Raises:
        DataError: there is no such image, one of them cannot be decoded, or the program does not
            know a class.
    """
    size, batch_size = program.info.input_size, program.batch_size

    def load(image: LabelledImage) -> tuple[np.ndarray, str]:
        try:
            pixels = decode(image.content, max_pixels=MAX_PIXELS, target_size=size)
        except RejectedError as error:
            name = f"{image.split}/{image.label}/{image.name}"
            raise DataError(f"{path}: {name} cannot be decoded: {error}") from None
        return resize(pixels, size), image.label

    images = (image for image in labelled_images(path) if image.split == split)
    outputs: list[Outputs] = []
    labels: list[str] = []

    def batches() -> Iterator[np.ndarray]:
        loaded = parallel_map(load, images, threads=4, buffer_size=2 * batch_size)
        for batch in batched(loaded, batch_size):
            labels.extend(label for _, label in batch)
            yield np.stack([pixels for pixels, _ in batch])

    for batch_outputs in _predict_batches(program, batches()):
        outputs.append(batch_outputs)
        on_progress(sum(len(batch) for batch in outputs))
    if not labels:
        raise DataError(f"{path} holds no image laid out {split}/CLASS/FILE.")
    return _evaluation(program, _concatenate(outputs), label_indices(program, labels))


def predict(program: Program, pixels: np.ndarray, *, anomaly_maps: bool = False) -> Outputs:
    """Compute a program's outputs.

    Args:
        program: the program.
        pixels: uint8 (N, 3, H, W).
        anomaly_maps: keep the anomaly maps.
    """
    return program.predict(pixels, maps="all" if anomaly_maps else "none")


def _predict_batches(program: Program, batches: Iterable[np.ndarray]) -> Iterator[Outputs]:
    cores = usable_cores()
    return parallel_map(partial(predict, program), batches, threads=cores, buffer_size=cores + 1)


def _concatenate(outputs: Sequence[Outputs]) -> Outputs:
    return Outputs(
        probabilities=np.concatenate([batch.probabilities for batch in outputs]),
        scores=np.concatenate([batch.scores for batch in outputs]),
    )


def _evaluation(program: Program, outputs: Outputs, labels: np.ndarray) -> Evaluation:
    info = program.info
    if info.task == CLASSIFICATION:
        metrics = classification_metrics(outputs.probabilities, labels, info.classes)
    else:
        metrics = anomaly_metrics(outputs.scores, labels == 1, info.threshold)
    return Evaluation(metrics, labels, outputs)
