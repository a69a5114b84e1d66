"""Pictures of held-out images: those a version gets wrong, gets right, or sees otherwise."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ml.evaluation import plots
from ml.evaluation.evaluate import Evaluation, predict
from ml.images import heatmap
from ml.program.info import ANOMALOUS, CLASSIFICATION, NORMAL
from ml.program.program import Program
from ml.training.data import Split

SHOWN = 24


def worst(program: Program, holdout: Split, evaluation: Evaluation) -> bytes:
    """Show the images with the worst predictions; of an anomaly model half of each label.

    Args:
        program: the version.
        holdout: the held-out images.
        evaluation: the version's evaluation of them.

    Returns:
        A PNG file.
    """
    order = np.argsort(_label_probabilities(program, evaluation), kind="stable")
    chosen = order[:SHOWN] if _is_classifier(program) else _half_of_each(evaluation, order)
    wrong = int((evaluation.predictions != evaluation.labels).sum())
    title = (
        f"Judged worst: {len(chosen)} of {len(evaluation.labels):,} held-out images, "
        f"{wrong:,} wrong"
    )
    return _gallery(program, holdout, chosen, _captions(program, evaluation, chosen), title)


def right(program: Program, holdout: Split, evaluation: Evaluation) -> bytes:
    """Show images with right predictions, from the least to the most certain one.

    Args:
        program: the version.
        holdout: the held-out images.
        evaluation: the version's evaluation of them.

    Returns:
        A PNG file.
    """
    probabilities = _label_probabilities(program, evaluation)
    is_right = np.flatnonzero(evaluation.predictions == evaluation.labels)
    order = is_right[np.argsort(probabilities[is_right], kind="stable")]
    if _is_classifier(program):
        chosen = _sample_evenly(order, SHOWN)
    else:
        labels = evaluation.labels[order]
        halves = [_sample_evenly(order[labels == label], SHOWN // 2) for label in (0, 1)]
        chosen = np.concatenate(halves)
    title = f"Right: {len(chosen)} of {len(is_right):,} held-out images, least certain first"
    return _gallery(program, holdout, chosen, _captions(program, evaluation, chosen), title)


def disagreements(
    program: Program, holdout: Split, evaluation: Evaluation, champion: Evaluation, version: int
) -> bytes | None:
    """Show the images that the champion predicts otherwise, the largest difference first.

    Args:
        program: the version.
        holdout: the held-out images.
        evaluation: the version's evaluation of them.
        champion: the champion's evaluation of them.
        version: of the champion.

    Returns:
        A PNG file; None if there are no such images.
    """
    differing = np.flatnonzero(evaluation.predictions != champion.predictions)
    if not len(differing):
        return None
    gains = (
        _label_probabilities(program, evaluation)[differing]
        - _label_probabilities(program, champion)[differing]
    )
    chosen = differing[np.argsort(-np.abs(gains), kind="stable")][:SHOWN]
    names = _label_names(program)
    captions = [
        f"{names[evaluation.labels[i]]}: {_prediction_text(program, evaluation, i)}\n"
        f"version {version}: {_prediction_text(program, champion, i)}"
        for i in chosen
    ]
    now_right = int((evaluation.predictions[differing] == evaluation.labels[differing]).sum())
    title = (
        f"Judged otherwise by version {version}: {len(chosen)} of {len(differing):,} held-out "
        f"images, {now_right:,} now right"
    )
    return _gallery(program, holdout, chosen, captions, title)


def _is_classifier(program: Program) -> bool:
    return program.info.task == CLASSIFICATION


def _label_names(program: Program) -> Sequence[str]:
    return program.info.classes if _is_classifier(program) else (NORMAL, ANOMALOUS)


def _label_probabilities(program: Program, evaluation: Evaluation) -> np.ndarray:
    """The probability that is predicted for each image's true label, float (N,)."""
    labels = evaluation.labels
    probabilities: np.ndarray
    if _is_classifier(program):
        probabilities = evaluation.outputs.probabilities[np.arange(len(labels)), labels]
    else:
        scores = evaluation.outputs.scores
        probabilities = np.where(labels == 1, scores, 1 - scores)
    return probabilities


def _half_of_each(evaluation: Evaluation, order: np.ndarray) -> np.ndarray:
    anomalous = order[evaluation.labels[order] == 1][: SHOWN // 2]
    normal = order[evaluation.labels[order] == 0][: SHOWN - len(anomalous)]
    return np.concatenate([normal, anomalous])


def _sample_evenly(order: np.ndarray, limit: int) -> np.ndarray:
    sample: np.ndarray = order[plots.evenly_spaced(len(order), limit)]
    return sample


def _captions(program: Program, evaluation: Evaluation, chosen: np.ndarray) -> list[str]:
    names = _label_names(program)
    captions = []
    for i in chosen:
        verdict = "right" if evaluation.predictions[i] == evaluation.labels[i] else "WRONG"
        prediction = _prediction_text(program, evaluation, i)
        captions.append(f"{names[evaluation.labels[i]]}, {verdict}\n{prediction}")
    return captions


def _prediction_text(program: Program, evaluation: Evaluation, index: int) -> str:
    """The predicted class with its probability, or the score and whether it is flagged."""
    predicted = evaluation.predictions[index]
    if _is_classifier(program):
        probability = evaluation.outputs.probabilities[index, predicted]
        return f"{program.info.classes[predicted]} {probability:.2f}"
    return f"{evaluation.outputs.scores[index]:.4f}{' flagged' if predicted else ''}"


def _gallery(
    program: Program, holdout: Split, chosen: np.ndarray, captions: Sequence[str], title: str
) -> bytes:
    """A gallery of the chosen images; those of an anomaly model have their heat maps on them."""
    pixels = np.array(holdout.pixels[chosen])
    if _is_classifier(program) or not len(chosen):
        return plots.gallery([heatmap.to_image(image) for image in pixels], captions, title)
    anomaly_maps = predict(program, pixels, anomaly_maps=True).anomaly_maps
    pictures = [
        Image.fromarray(heatmap.overlay(image, anomaly_map))
        for image, anomaly_map in zip(pixels, anomaly_maps, strict=True)
    ]
    return plots.gallery(pictures, captions, title)
