"""Drawn anomalies, and what an image may differ in without meaning anything."""

import pytest
import torch

from ml.models import anomalies
from ml.models.components.augmentation import occluders, varied

SIZES = ((16, 24), (32, 56), (17, 31))


def _images(size: tuple[int, int], count: int = 12) -> torch.Tensor:
    torch.manual_seed(0)
    return 0.3 + 0.4 * torch.rand(count, 3, *size)


def test_every_file_is_a_kind():
    assert anomalies.kinds() == ["empty", "pasted", "spill", "torn"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", anomalies.kinds())
def test_a_drawing_changes_the_image_where_its_mask_says(kind, size):
    images = _images(size)
    drawn, mask = anomalies.drawing(kind)(images)
    assert drawn.shape == images.shape
    assert mask.shape == (len(images), 1, *size)
    assert drawn.isfinite().all()
    assert drawn.min() >= 0 and drawn.max() <= 1 and mask.min() >= 0 and mask.max() <= 1
    change = (drawn - images).abs().mean(1, keepdim=True)
    inside, outside = mask > 0.9, mask < 0.01
    assert inside.any() and outside.any()
    assert change[inside].mean() > 5 * change[outside].mean()


@pytest.mark.parametrize("kind", anomalies.kinds())
def test_a_seed_draws_the_same_again_and_another_something_else(kind):
    images, draw = _images((16, 24)), anomalies.drawing(kind)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw(images)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", anomalies.kinds())
def test_a_batch_may_be_of_one_image_or_of_none(kind):
    for count in (1, 0):
        drawn, mask = anomalies.drawing(kind)(_images((16, 24), count))
        assert len(drawn) == len(mask) == count


@pytest.mark.parametrize("size", SIZES)
def test_variations_stay_images(size):
    images = varied(_images(size))
    assert images.isfinite().all()
    assert images.min() >= 0 and images.max() <= 1
    assert len(varied(images[:0])) == 0


def test_occluders_cover_about_the_share_of_the_images_and_never_all_of_one():
    images = _images((32, 56), 2000)
    cover, front = occluders(images, 0.3)
    assert front.shape == images.shape
    covered = cover.mean((1, 2, 3))
    assert 0.2 < (covered > 0.01).float().mean() < 0.35
    assert covered.max() < 0.9
    assert not occluders(images, 0.0)[0].any()
