"""Synthetic anomalies, augmentation and occlusion."""

import pytest
import torch

from ml.models import anomalies
from ml.models.components.augmentation import augment, random_occlusion

SIZES = ((16, 24), (32, 56), (17, 31))


def _images(size: tuple[int, int], count: int = 12) -> torch.Tensor:
    torch.manual_seed(0)
    return 0.3 + 0.4 * torch.rand(count, 3, *size)


def test_every_file_is_a_kind_of_anomaly():
    assert anomalies.names() == ["empty", "pasted", "spill", "torn"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", anomalies.names())
def test_an_anomaly_changes_the_image_where_its_mask_says(name, size):
    images = _images(size)
    anomalous, mask = anomalies.load(name)(images)
    assert anomalous.shape == images.shape
    assert mask.shape == (len(images), 1, *size)
    assert anomalous.isfinite().all()
    assert anomalous.min() >= 0 and anomalous.max() <= 1 and mask.min() >= 0 and mask.max() <= 1
    change = (anomalous - images).abs().mean(1, keepdim=True)
    inside, outside = mask > 0.9, mask < 0.01
    assert inside.any() and outside.any()
    assert change[inside].mean() > 5 * change[outside].mean()


@pytest.mark.parametrize("name", anomalies.names())
def test_the_same_seed_gives_the_same_anomalies_and_another_seed_others(name):
    images, synthesize = _images((16, 24)), anomalies.load(name)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(synthesize(images)[0])
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("name", anomalies.names())
def test_a_batch_may_have_one_image_or_none(name):
    for count in (1, 0):
        anomalous, mask = anomalies.load(name)(_images((16, 24), count))
        assert len(anomalous) == len(mask) == count


@pytest.mark.parametrize("size", SIZES)
def test_augmented_images_are_images(size):
    images = augment(_images(size))
    assert images.isfinite().all()
    assert images.min() >= 0 and images.max() <= 1
    assert len(augment(images[:0])) == 0


def test_about_the_given_share_of_the_images_is_occluded_and_no_image_wholly():
    images = _images((32, 56), 2000)
    opacity, occlusion = random_occlusion(images, 0.3)
    assert occlusion.shape == images.shape
    covered = opacity.mean((1, 2, 3))
    assert 0.2 < (covered > 0.01).float().mean() < 0.35
    assert covered.max() < 0.9
    assert not random_occlusion(images, 0.0)[0].any()
