"""The table of models: for each contender the means over seeds, and below them min .. max."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_RATE, _TIME = "{:,.0f}", "{:,.1f}"
# Figure, heading and how a value is written.
COLUMNS = {
    "anomaly": (
        ("auroc", "AUROC", "{:.3f}"),
        ("average_precision", "AP", "{:.3f}"),
        ("tpr", "TPR", "{:.3f}"),
        ("tnr", "TNR", "{:.3f}"),
        ("oracle_tpr", "TPR*", "{:.3f}"),
        ("oracle_tnr", "TNR*", "{:.3f}"),
        ("train_seconds", "train s", _TIME),
        ("images_per_second", "images/s", _RATE),
        ("size_mb", "MB", "{:.2f}"),
    ),
    "classification": (
        ("accuracy", "accuracy", "{:.3f}"),
        ("macro_f1", "macro F1", "{:.3f}"),
        ("calibration_error", "ECE", "{:.3f}"),
        ("train_seconds", "train s", _TIME),
        ("seconds_to_wanted", "s to 0.82", _TIME),
        ("epoch_seconds", "s / epoch", _TIME),
        ("images_per_second", "images/s", _RATE),
        ("size_mb", "MB", "{:.2f}"),
    ),
}
_NAME, _CELL = 24, 15
_ORACLE = (
    "* at the threshold with the best balanced accuracy on these very test images: an oracle's, "
    "not an honest figure"
)


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The table for a terminal, and what must be known to read it."""
    columns, about = COLUMNS[document["task"]], document["machine"]
    images = document["images"]
    yield (
        f"{document['model']} on {document['data']}: {images['fit']:,} images to train from, "
        f"{images['holdout']:,} held out, {images['test']:,} to test; "
        f"seeds {document['seeds']}, {document['date']}, {document['minutes']:.1f} minutes"
    )
    yield (
        f"{about['cores']} cores of {about['cpu']} ({about['isa']}), no GPU used, "
        f"torch {about['packages'].get('torch')}, openvino {about['packages'].get('openvino')}"
    )
    if document["quick"]:
        yield "QUICK: few images, one epoch, one seed; the figures say nothing of the models"
    yield ""
    yield " " * _NAME + "".join(f"{heading:>{_CELL}}" for _, heading, _ in columns)
    for row in document["rows"]:
        yield from _row(row, columns)
    yield ""
    if document["task"] == "anomaly":
        yield _ORACLE
    yield from (f"{row['name']}: {row['note']}" for row in document["rows"] if row["note"])
    yield from document["remarks"]


def _row(row: Mapping[str, Any], columns: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    if row["figures"] is None:
        yield f"{row['name']:{_NAME}}{'not run':>{_CELL}}"
        return
    found = [(row["figures"].get(key), form) for key, _, form in columns]
    yield f"{row['name']:{_NAME}}" + "".join(_cell(one, form) for one, form in found)
    if row["seeds"] > 1:
        yield " " * _NAME + "".join(_range(one, form) for one, form in found)


def _cell(figure: Mapping[str, float] | None, form: str) -> str:
    return f"{form.format(figure['mean']) if figure else '-':>{_CELL}}"


def _range(figure: Mapping[str, float] | None, form: str) -> str:
    shown = f"{form.format(figure['min'])} .. {form.format(figure['max'])}" if figure else ""
    return f"{shown:>{_CELL}}"
