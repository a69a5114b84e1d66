"""A picture of what a detector gets wrong on the test images."""

import numpy as np
from PIL import Image

from ml.data.snapshot import Row
from ml.evaluation import plots
from ml.images import heatmap
from ml.program.program import Program
from ml.training.data import Split

_MOST = 60


def picture(program: Program, test: Split, scores: np.ndarray, threshold: float) -> bytes:
    """A PNG: missed anomalies, the lowest score first, then false alarms, the highest first.

    Each with its heat map and a caption: the file's name (its first 8 characters), the kind of
    mistake and the score. At most 60 of each.

    Args:
        program: the detector, which makes the anomaly maps.
        test: the test images.
        scores: float (N,), of the images of `test`.
        threshold: scores at or above it are flagged.
    """
    flagged, anomalous = scores >= threshold, test.labels == 1
    order = np.argsort(scores)
    missed = [index for index in order if anomalous[index] and not flagged[index]][:_MOST]
    alarms = [index for index in order[::-1] if flagged[index] and not anomalous[index]][:_MOST]
    pictures, captions = [], []
    for kind, chosen in (("missed", missed), ("false alarm", alarms)):
        for index in chosen:
            pixels = test.pixels[index]
            heat = program.predict(pixels[None]).anomaly_maps[0]
            pictures.append(Image.fromarray(heatmap.overlay(pixels, heat)))
            captions.append(f"{_name(test.rows[index])} {kind}\nscore {scores[index]:.4f}")
    title = (
        f"{int((anomalous & ~flagged).sum())} of {int(anomalous.sum())} anomalies missed, "
        f"{int((flagged & ~anomalous).sum())} of {int((~anomalous).sum()):,} normal images flagged"
    )
    return plots.gallery(pictures, captions, title)


def _name(row: Row) -> str:
    return row.uri.rsplit("/", 1)[-1][:8]
