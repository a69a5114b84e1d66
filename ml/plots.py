"""Pictures for a version's page: PNG files as bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_RED, _GREEN, _BLUE, _GREY = "#c22f2f", "#18794e", "#3b7dd8", "#5b6b7b"


def training_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Loss, learning rate and validation metrics, by epoch; a mapping an epoch."""
    names = [name for name in history[0] if name not in ("epoch", "seconds")]
    figure, axes = _figure(len(names), 3.2)
    epochs = [row["epoch"] for row in history]
    for axis, name in zip(axes, names, strict=True):
        axis.plot(epochs, [row.get(name, np.nan) for row in history], "o-", color=_BLUE, ms=3)
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("epoch")
    return _png(figure)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> bytes:
    """How many images of each class (row) went to each class (column)."""
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    figure, (axis,) = _figure(1, max(4.0, 0.5 * len(classes)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="labelled", title="held-out images")
    if len(classes) <= 20:
        for row, column in np.ndindex(counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    return _png(figure)


def rates_by_threshold(scores: np.ndarray, anomalous: np.ndarray, threshold: float) -> bytes:
    """Share of anomalous images found (TPR) and of normal images left alone (TNR)."""
    figure, (axis,) = _figure(1, 4.0)
    grid = np.unique(np.concatenate([np.linspace(0, 1, 200), scores]))
    for kind, name, colour, above in ((True, "TPR", _RED, True), (False, "TNR", _GREEN, False)):
        chosen = np.sort(scores[anomalous == kind])
        if len(chosen):
            below = np.searchsorted(chosen, grid, side="left") / len(chosen)
            axis.plot(grid, 1 - below if above else below, color=colour, label=name)
    axis.axvline(threshold, color=_GREY, ls="--", label=f"threshold {threshold:.4f}")
    axis.set(xlabel="threshold", ylabel="share", title="held-out images", ylim=(-0.02, 1.02))
    axis.legend()
    return _png(figure)


def score_histogram(scores: np.ndarray, anomalous: np.ndarray, threshold: float) -> bytes:
    """The scores of normal and of anomalous images; the count's axis is logarithmic."""
    figure, (axis,) = _figure(1, 4.0)
    for kind, name, colour in ((False, "normal", _GREEN), (True, "anomalous", _RED)):
        if (anomalous == kind).any():
            axis.hist(
                scores[anomalous == kind], 40, range=(0, 1), color=colour, alpha=0.6, label=name
            )
    axis.axvline(threshold, color=_GREY, ls="--", label=f"threshold {threshold:.4f}")
    axis.set(xlabel="anomaly score", ylabel="images", title="held-out images", yscale="log")
    axis.legend()
    return _png(figure)


def gallery(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 6) -> bytes:
    """Pictures side by side, each with a caption of a line or two below it."""
    side, margin, text = 160, 10, 34
    rows = max(1, -(-len(pictures) // columns))
    sheet = Image.new(
        "RGB", (columns * (side + margin) + margin, rows * (side + text + margin) + margin), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = margin + (index % columns) * (side + margin)
        y = margin + (index // columns) * (side + text + margin)
        scale = side / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        sheet.paste(picture.resize(size, Image.Resampling.BICUBIC), (x, y))
        draw.text((x, y + size[1] + 2), caption, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _figure(columns: int, height: float) -> tuple[Any, Any]:
    # Not pyplot, whose global state is not meant for servers and threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 4.2 * columns) if columns > 1 else 6.5, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _png(figure: Any) -> bytes:
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
