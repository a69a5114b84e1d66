"""Held-out images to look at: what a version gets wrong, gets right, and sees otherwise than the
champion.
"""

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


def worst(program: Program, holdout: Split, held: Evaluation) -> bytes:
    """The images that were judged worst, the wrong ones among them; of an anomaly model half of
    each kind.
    """
    order = np.argsort(_merit(program, held), kind="stable")
    chosen = order[:SHOWN] if _classifies(program) else _of_each_label(held, order)
    wrong = int((held.predictions != held.labels).sum())
    title = f"Judged worst: {len(chosen)} of {len(held.labels):,} held-out images, {wrong:,} wrong"
    return _gallery(program, holdout, chosen, _captions(program, held, chosen), title)


def right(program: Program, holdout: Split, held: Evaluation) -> bytes:
    """Images that were judged right, from the barely to the most certainly right."""
    merit = _merit(program, held)
    found = np.flatnonzero(held.predictions == held.labels)
    order = found[np.argsort(merit[found], kind="stable")]
    if _classifies(program):
        chosen = _evenly(order, SHOWN)
    else:
        kinds = [_evenly(order[held.labels[order] == label], SHOWN // 2) for label in (0, 1)]
        chosen = np.concatenate(kinds)
    title = f"Right: {len(chosen)} of {len(found):,} held-out images, least certain first"
    return _gallery(program, holdout, chosen, _captions(program, held, chosen), title)


def disagreements(
    program: Program, holdout: Split, held: Evaluation, champion: Evaluation, version: int
) -> bytes | None:
    """The images that the champion, `version`, judges otherwise, those first that it judged most
    differently; None when there is none.
    """
    found = np.flatnonzero(held.predictions != champion.predictions)
    if not len(found):
        return None
    gained = _merit(program, held)[found] - _merit(program, champion)[found]
    chosen = found[np.argsort(-np.abs(gained), kind="stable")][:SHOWN]
    names = _names(program)
    captions = [
        f"{names[held.labels[i]]}: {_said(program, held, i)}\n"
        f"version {version}: {_said(program, champion, i)}"
        for i in chosen
    ]
    title = (
        f"Judged otherwise by version {version}: {len(chosen)} of {len(found):,} held-out images, "
        f"{int((held.predictions[found] == held.labels[found]).sum()):,} now right"
    )
    return _gallery(program, holdout, chosen, captions, title)


def _classifies(program: Program) -> bool:
    return program.info.task == CLASSIFICATION


def _names(program: Program) -> Sequence[str]:
    return program.info.classes if _classifies(program) else (NORMAL, ANOMALOUS)


def _merit(program: Program, held: Evaluation) -> np.ndarray:
    """How well each image was judged: its own class's probability, or the score of an anomalous
    one and what a normal one's lacks to 1.
    """
    if _classifies(program):
        return held.outputs.probabilities[np.arange(len(held.labels)), held.labels]
    return np.where(held.labels == 1, held.outputs.scores, 1 - held.outputs.scores)


def _of_each_label(held: Evaluation, order: np.ndarray) -> np.ndarray:
    anomalous = order[held.labels[order] == 1][: SHOWN // 2]
    return np.concatenate([order[held.labels[order] == 0][: SHOWN - len(anomalous)], anomalous])


def _evenly(order: np.ndarray, most: int) -> np.ndarray:
    return order[np.linspace(0, len(order) - 1, min(len(order), most)).round().astype(int)]


def _captions(program: Program, held: Evaluation, chosen: np.ndarray) -> list[str]:
    names = _names(program)
    captions = []
    for i in chosen:
        verdict = "right" if held.predictions[i] == held.labels[i] else "WRONG"
        captions.append(f"{names[held.labels[i]]}, {verdict}\n{_said(program, held, i)}")
    return captions


def _said(program: Program, held: Evaluation, index: int) -> str:
    """What was answered: the class with its probability, or the score and whether it is flagged."""
    answer = held.predictions[index]
    if _classifies(program):
        probability = held.outputs.probabilities[index, answer]
        return f"{program.info.classes[answer]} {probability:.2f}"
    return f"{held.outputs.scores[index]:.4f}{' flagged' if answer else ''}"


def _gallery(
    program: Program, holdout: Split, chosen: np.ndarray, captions: Sequence[str], title: str
) -> bytes:
    """The images, those of an anomaly model with their heat maps."""
    pixels = np.array(holdout.pixels[chosen])
    if _classifies(program) or not len(chosen):
        return plots.gallery([heatmap.to_image(image) for image in pixels], captions, title)
    heat = predict(program, pixels, anomaly_maps=True).heatmaps
    overlaid = [heatmap.overlay(image, warm) for image, warm in zip(pixels, heat, strict=True)]
    return plots.gallery([Image.fromarray(picture) for picture in overlaid], captions, title)
