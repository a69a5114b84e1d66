"""Pictures for a version's page: PNG files as bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ml.evaluation.metrics import Calibration
from ml.program.info import ANOMALOUS, NORMAL

_RED, _GREEN, _BLUE, _GREY = "#c22f2f", "#18794e", "#3b7dd8", "#5b6b7b"
_LOSSES = {"train_loss": ("training", _BLUE), "holdout_loss": ("held-out images", _RED)}
# Where a legend hides nothing.
_BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
_MOST_LAYERS = 16
_MOST_CLASSES = 40


def training_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Losses, learning rate, norms and validation metrics, by epoch; a mapping an epoch."""
    epochs = [row["epoch"] for row in history]
    names = [name for name in history[0] if name not in ("epoch", "seconds", *_LOSSES)]
    figure, axes = _figure(-(-(len(names) + 1) // 2), 6.0, rows=2)
    for name, (label, colour) in _LOSSES.items():
        if name in history[0]:
            losses = [row.get(name, np.nan) for row in history]
            axes[0].plot(epochs, losses, "o-", color=colour, ms=3, label=label)
    axes[0].legend()
    for axis, name in zip(axes[1:], names, strict=False):
        axis.plot(epochs, [row.get(name, np.nan) for row in history], "o-", color=_BLUE, ms=3)
    for axis, name in zip(axes, ["loss", *names], strict=False):
        axis.set(title=name.replace("_", " "), xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[len(names) + 1 :]:
        axis.remove()
    return _png(figure)


def weights_and_gradients(
    weights: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray]
) -> bytes:
    """How the weights of each layer, and their gradients in the last step, are distributed; the
    counts' axes are logarithmic.

    Args:
        weights, gradients: layer → float array of any shape; a layer may have no gradient. Of many
            layers some are shown, from the first to the last.
    """
    layers = list(weights)
    shown = [layers[i] for i in _spread(len(layers), _MOST_LAYERS)]
    figure, axes = _figure(2, 1.0 + 0.9 * len(shown), rows=len(shown))
    for row, layer in enumerate(shown):
        left, right = axes[2 * row], axes[2 * row + 1]
        _distribution(left, weights[layer], f"{layer}: weights", _BLUE)
        _distribution(right, gradients.get(layer), "gradients of the last step, clipped", _RED)
    return _png(figure)


def _distribution(axis: Any, values: np.ndarray | None, title: str, colour: str) -> None:
    known = values is not None and np.isfinite(values).all()
    axis.yaxis.set_visible(False)
    axis.set_title(title if known else f"{title}: none", fontsize=8)
    if values is not None and known:
        axis.hist(values.ravel(), 60, histtype="stepfilled", color=colour, log=True)
    axis.tick_params(labelsize=7)
    axis.locator_params(axis="x", nbins=5)


def per_class(figures: Mapping[str, Mapping[str, float]]) -> bytes:
    """Precision, recall and F1 of each class, and of how many images; the worst class on top.

    Args:
        figures: class → precision, recall, f1, support. Of many classes the worst are shown.
    """
    names = sorted(figures, key=lambda name: figures[name]["f1"])[:_MOST_CLASSES]
    figure, (axis,) = _figure(1, 1.6 + 0.45 * len(names))
    places = np.arange(len(names))
    measures = (("precision", _BLUE), ("recall", _RED), ("f1", _GREY))
    for offset, (measure, colour) in zip((-0.27, 0, 0.27), measures, strict=True):
        values = [figures[name][measure] for name in names]
        axis.barh(places + offset, values, 0.25, color=colour, label=measure.replace("f1", "F1"))
    axis.set_yticks(places, [f"{name} ({figures[name]['support']:,})" for name in names])
    title = "held-out images"
    if len(names) < len(figures):
        title += f", the worst {len(names)} of {len(figures)} classes"
    axis.set(title=title, xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    axis.legend(**_BESIDE)
    return _png(figure)


def reliability(measured: Calibration, said: str, so: str) -> bytes:
    """A reliability diagram: how often it was so, against the probability that was said.

    Args:
        said, so: what the probability is called, and what it is of; the labels of the axes.
    """
    figure, (axis, below) = _figure(2, 4.0)
    edges = np.linspace(0, 1, len(measured.counts) + 1)
    middles, width = (edges[:-1] + edges[1:]) / 2, edges[1]
    axis.bar(middles, measured.rates, width, color=_BLUE, alpha=0.5, edgecolor=_BLUE)
    axis.plot([0, 1], [0, 1], color=_GREY, ls="--", label="calibrated")
    axis.plot(measured.confidences, measured.rates, "o", color=_RED, ms=4, label="mean of a bin")
    title = f"expected calibration error {measured.error:.4f}"
    axis.set(xlabel=said, ylabel=so, title=title, xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(**_BESIDE)
    below.bar(middles, measured.counts, width, color=_GREY)
    below.set(xlabel=said, ylabel="images", title="held-out images", yscale="log", xlim=(0, 1))
    below.set_ylim(bottom=0.8)
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
            reached = (chosen >= threshold).mean() if above else (chosen < threshold).mean()
            label = f"{name} {reached:.4f} at the threshold"
            axis.plot([threshold], [reached], "o", color=colour, ms=8, mec="black", label=label)
    axis.axvline(threshold, color=_GREY, ls="--", label=f"threshold {threshold:.4f}")
    axis.set(xlabel="threshold", ylabel="share", title="held-out images", ylim=(-0.02, 1.02))
    axis.legend(**_BESIDE)
    return _png(figure)


def score_histogram(scores: np.ndarray, anomalous: np.ndarray, threshold: float) -> bytes:
    """The scores of normal and of anomalous images; the count's axis is logarithmic."""
    figure, (axis,) = _figure(1, 4.0)
    for kind, name, colour in ((False, NORMAL, _GREEN), (True, ANOMALOUS, _RED)):
        if (anomalous == kind).any():
            axis.hist(
                scores[anomalous == kind], 40, range=(0, 1), color=colour, alpha=0.6, label=name
            )
    axis.axvline(threshold, color=_GREY, ls="--", label=f"threshold {threshold:.4f}")
    axis.set(xlabel="anomaly score", ylabel="images", title="held-out images", yscale="log")
    axis.legend()
    return _png(figure)


def gallery(
    pictures: Sequence[Image.Image], captions: Sequence[str], title: str, columns: int = 6
) -> bytes:
    """Pictures side by side under a title, each with a caption of a line or two below it."""
    side, margin, text, head = 160, 10, 34, 30
    rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (side + margin) + margin, head + rows * (side + text + margin) + margin),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, fill="black", font=ImageFont.load_default(15))
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = margin + (index % columns) * (side + margin)
        y = head + margin + (index // columns) * (side + text + margin)
        scale = side / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        sheet.paste(picture.resize(size, Image.Resampling.BICUBIC), (x, y))
        draw.text((x, y + size[1] + 2), caption, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _figure(columns: int, height: float, rows: int = 1) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes row by row."""
    # Not pyplot, whose global state is not meant for servers and threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 4.2 * columns) if columns > 1 else 8.0, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _png(figure: Any) -> bytes:
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
