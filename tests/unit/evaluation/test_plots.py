"""The plots of a version's page: they can be decoded, and do not become too large."""

import io

import numpy as np
import pytest
from PIL import Image

from ml.evaluation import plots


def _open(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    picture.load()
    assert picture.format == "PNG"
    return picture


def _height(content: bytes) -> int:
    return _open(content).height


def _count_pixels(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((np.asarray(picture.convert("RGB")) == colour).all(axis=2).sum())


@pytest.mark.slow
def test_of_many_layers_and_classes_some_are_shown():
    layers = {f"layer{i}": np.random.default_rng(i).normal(size=(4, 4)) for i in range(100)}
    few = dict(list(layers.items())[:16])
    assert _height(plots.weights_and_gradients(layers, layers)) == _height(
        plots.weights_and_gradients(few, few)
    )
    row = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 3}
    many, few = ({str(i): row for i in range(count)} for count in (500, 40))
    assert _height(plots.per_class(many)) == _height(plots.per_class(few))


def test_a_layer_without_a_finite_gradient_is_plotted():
    values = np.random.default_rng(0).normal(size=(3, 3))
    weights = {"one": values, "other": values}
    without = _open(plots.weights_and_gradients(weights, {"one": np.full((3, 3), np.nan)}))
    both = _open(plots.weights_and_gradients(weights, weights))
    assert without.size == both.size
    # The weights on the left are plotted, the gradients on the right are not.
    blue, red = (59, 125, 216), (194, 47, 47)
    assert _count_pixels(without, blue) > 0.9 * _count_pixels(both, blue) > 0
    assert _count_pixels(without, red) == 0 < _count_pixels(both, red)


@pytest.mark.parametrize(("count", "rows"), [(0, 0), (1, 1), (6, 1), (7, 2)])
def test_a_gallery_has_room_for_every_picture(count, rows):
    picture = Image.new("RGB", (56, 32), "red")
    sheet = _open(plots.gallery([picture] * count, ["caption"] * count, "title"))
    assert sheet.height == 40 + 204 * rows
    reds = (np.asarray(sheet) == (255, 0, 0)).all(axis=2).sum()
    assert reds == count * 160 * 91


def test_an_epoch_may_lack_a_metric():
    history = [
        {"epoch": 1.0, "train_loss": 2.0, "holdout_loss": 2.1, "holdout_auroc": 0.5},
        {"epoch": 2.0, "train_loss": 1.0, "holdout_loss": 1.1},
    ]
    complete = [history[0], history[1] | {"holdout_auroc": 0.9}]
    never = [{k: v for k, v in row.items() if k != "holdout_auroc"} for row in history]
    some, all_, none = (_open(plots.training_curves(h)) for h in (history, complete, never))
    # The metric keeps its place, with fewer points.
    assert some.size == all_.size
    blue = (59, 125, 216)
    assert _count_pixels(none, blue) < _count_pixels(some, blue) < _count_pixels(all_, blue)
