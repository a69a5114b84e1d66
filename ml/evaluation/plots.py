"""Plots for a version's page in MLflow: PNG files as bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ml.evaluation.metrics import Calibration
from ml.program.info import ANOMALOUS, NORMAL

_RED, _GREEN, _BLUE, _GREY = "#c22f2f", "#18794e", "#3b7dd8", "#5b6b7b"
_LOSSES = {"train_loss": ("training", _BLUE), "holdout_loss": ("held-out images", _RED)}
# To the right of the axes, where a legend hides nothing.
_LEGEND_OUTSIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
_MAX_LAYERS = 16
_MAX_CLASSES = 40


def training_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Plot losses, learning rate, norms and validation metrics by epoch.

    Args:
        history: one mapping per epoch, name → value, all with `epoch`; one may lack a metric.
    """
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
    return _encode_png(figure)


def weights_and_gradients(
    weights: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray]
) -> bytes:
    """Plot histograms of each layer's weights and of their gradients in the last step.

    The axes of the counts are logarithmic. Of many layers only some are shown, evenly spaced.

    Args:
        weights: layer → float array of any shape.
        gradients: layer → float array of any shape; a layer may be missing.
    """
    layers = list(weights)
    layers = [layers[i] for i in evenly_spaced(len(layers), _MAX_LAYERS)]
    figure, axes = _figure(2, 1.0 + 0.9 * len(layers), rows=len(layers))
    for row, layer in enumerate(layers):
        left, right = axes[2 * row], axes[2 * row + 1]
        _plot_histogram(left, weights[layer], f"{layer}: weights", _BLUE)
        _plot_histogram(right, gradients.get(layer), "gradients of the last step, clipped", _RED)
    return _encode_png(figure)


def _plot_histogram(axis: Any, values: np.ndarray | None, title: str, colour: str) -> None:
    is_finite = values is not None and np.isfinite(values).all()
    axis.yaxis.set_visible(False)
    axis.set_title(title if is_finite else f"{title}: none", fontsize=8)
    if values is not None and is_finite:
        axis.hist(values.ravel(), 60, histtype="stepfilled", color=colour, log=True)
    axis.tick_params(labelsize=7)
    axis.locator_params(axis="x", nbins=5)


def per_class(metrics: Mapping[str, Mapping[str, float]]) -> bytes:
    """Plot precision, recall and F1 of each class, the worst class on top.

    Of many classes only the worst are shown.

    Args:
        metrics: class → precision, recall, f1 and support, the number of images.
    """
    names = sorted(metrics, key=lambda name: metrics[name]["f1"])[:_MAX_CLASSES]
    figure, (axis,) = _figure(1, 1.6 + 0.45 * len(names))
    positions = np.arange(len(names))
    columns = (("precision", _BLUE), ("recall", _RED), ("f1", _GREY))
    for offset, (metric, colour) in zip((-0.27, 0, 0.27), columns, strict=True):
        values = [metrics[name][metric] for name in names]
        axis.barh(positions + offset, values, 0.25, color=colour, label=metric.replace("f1", "F1"))
    axis.set_yticks(positions, [f"{name} ({metrics[name]['support']:,})" for name in names])
    title = "held-out images"
    if len(names) < len(metrics):
        title += f", the worst {len(names)} of {len(metrics)} classes"
    axis.set(title=title, xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    axis.legend(**_LEGEND_OUTSIDE)
    return _encode_png(figure)


def reliability(calibration: Calibration, x_label: str, y_label: str) -> bytes:
    """Plot a reliability diagram: observed rates against predicted probabilities, and counts.

    Args:
        calibration: the bins.
        x_label: the name of the probability.
        y_label: the name of the rate.
    """
    figure, (axis, counts_axis) = _figure(2, 4.0)
    edges = np.linspace(0, 1, len(calibration.counts) + 1)
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1]
    confidences, rates = calibration.confidences, calibration.rates
    axis.bar(centres, rates, width, color=_BLUE, alpha=0.5, edgecolor=_BLUE)
    axis.plot([0, 1], [0, 1], color=_GREY, ls="--", label="calibrated")
    axis.plot(confidences, rates, "o", color=_RED, ms=4, label="mean of a bin")
    title = f"expected calibration error {calibration.error:.4f}"
    axis.set(xlabel=x_label, ylabel=y_label, title=title, xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(**_LEGEND_OUTSIDE)
    counts_axis.bar(centres, calibration.counts, width, color=_GREY)
    counts_axis.set(
        xlabel=x_label, ylabel="images", title="held-out images", yscale="log", xlim=(0, 1)
    )
    counts_axis.set_ylim(bottom=0.8)
    return _encode_png(figure)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> bytes:
    """Plot how many images of each class (row) are predicted as each class (column).

    Args:
        labels: int (N,), indices into `classes`.
        predicted: int (N,), indices into `classes`.
        classes: the names of the classes.
    """
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
    return _encode_png(figure)


def rates_by_threshold(scores: np.ndarray, anomalous: np.ndarray, threshold: float) -> bytes:
    """Plot the true positive and the true negative rate against the threshold.

    Args:
        scores: float (N,) in [0, 1].
        anomalous: bool (N,).
        threshold: the chosen threshold, which is marked.
    """
    figure, (axis,) = _figure(1, 4.0)
    grid = np.unique(np.concatenate([np.linspace(0, 1, 200), scores]))
    for is_anomalous, name, colour in ((True, "TPR", _RED), (False, "TNR", _GREEN)):
        values = np.sort(scores[anomalous == is_anomalous])
        if len(values):
            below = np.searchsorted(values, grid, side="left") / len(values)
            axis.plot(grid, 1 - below if is_anomalous else below, color=colour, label=name)
            hits = values >= threshold if is_anomalous else values < threshold
            rate = hits.mean()
            label = f"{name} {rate:.4f} at the threshold"
            axis.plot([threshold], [rate], "o", color=colour, ms=8, mec="black", label=label)
    axis.axvline(threshold, color=_GREY, ls="--", label=f"threshold {threshold:.4f}")
    axis.set(xlabel="threshold", ylabel="share", title="held-out images", ylim=(-0.02, 1.02))
    axis.legend(**_LEGEND_OUTSIDE)
    return _encode_png(figure)


def score_histogram(scores: np.ndarray, anomalous: np.ndarray, threshold: float) -> bytes:
    """Plot histograms of the scores of normal and of anomalous images; counts are logarithmic.

    Args:
        scores: float (N,) in [0, 1].
        anomalous: bool (N,).
        threshold: the chosen threshold, which is marked.
    """
    figure, (axis,) = _figure(1, 4.0)
    for is_anomalous, name, colour in ((False, NORMAL, _GREEN), (True, ANOMALOUS, _RED)):
        values = scores[anomalous == is_anomalous]
        if len(values):
            axis.hist(values, 40, range=(0, 1), color=colour, alpha=0.6, label=name)
    axis.axvline(threshold, color=_GREY, ls="--", label=f"threshold {threshold:.4f}")
    axis.set(xlabel="anomaly score", ylabel="images", title="held-out images", yscale="log")
    axis.legend()
    return _encode_png(figure)


def gallery(
    pictures: Sequence[Image.Image], captions: Sequence[str], title: str, columns: int = 6
) -> bytes:
    """Arrange pictures in rows under a title.

    Args:
        pictures: of any size; they are scaled to the same one.
        captions: one per picture, of at most two lines.
        title: one line.
        columns: the number of pictures in a row.
    """
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


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """Choose at most `limit` of the indices below `count`, with the first and the last one."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))


def _figure(columns: int, height: float, rows: int = 1) -> tuple[Any, Any]:
    """A figure of `height` inches, and its axes, row by row."""
    # Not pyplot, whose global state is not thread-safe.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 4.2 * columns) if columns > 1 else 8.0, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _encode_png(figure: Any) -> bytes:
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
