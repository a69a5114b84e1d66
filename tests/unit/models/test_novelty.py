"""Novelty: the Mahalanobis distance to the normal images."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from ml.models import build
from ml.models.components.novelty import Novelty

SIZE = 6


def _features(count: int, seed: int = 0) -> torch.Tensor:
    """Correlated features in different units."""
    random = np.random.default_rng(seed)
    correlated = random.normal(size=(count, SIZE)) @ np.random.default_rng(1).normal(
        size=(SIZE, SIZE)
    )
    return torch.from_numpy((correlated * [1, 2, 5, 10, 20, 30] + 3).astype(np.float32))


def _fit(features: torch.Tensor) -> Novelty:
    novelty = Novelty(features.shape[1])
    novelty.fit(features)
    return novelty


def test_it_is_the_mahalanobis_distance_under_a_shrunk_covariance():
    # So few images that the covariance is shrunk by more than the minimum.
    known, unknown = _features(60), _features(20, seed=2) * 1.5
    values = known.double().numpy()
    scale = values.std(axis=0)
    scaled = LedoitWolf(assume_centered=True).fit((values - values.mean(axis=0)) / scale)
    assert scaled.shrinkage_ > 0.01
    inverse = np.linalg.inv(scaled.covariance_ * np.outer(scale, scale))
    distances = [mahalanobis(one, values.mean(axis=0), inverse) for one in unknown.double().numpy()]
    squared = np.square(distances)
    novelty = _fit(known)(unknown).numpy()
    np.testing.assert_allclose(novelty, squared / (squared + SIZE), atol=1e-5)


def test_it_rises_with_the_distance_and_stays_between_0_and_1():
    known = _features(500)
    away = known.mean(0) + torch.tensor([0, 0.1, 1, 3, 10, 1e3, 1e6, 1e30])[:, None] * known.std(0)
    novelty = _fit(known)(away)
    assert (novelty.diff() >= 0).all() and (novelty[:6].diff() > 0).all()
    assert novelty[0] == pytest.approx(0, abs=1e-5)
    assert (novelty >= 0).all() and (novelty <= 1).all()


def test_unfitted_or_fitted_to_fewer_than_two_images_it_is_zero():
    features = _features(5)
    assert torch.equal(Novelty(SIZE)(features), torch.zeros(5))
    assert torch.equal(_fit(features[:1])(features), torch.zeros(5))


@pytest.mark.parametrize("count", [2, 5])
def test_fewer_images_than_features_are_enough(count):
    known = _features(count)
    novelty = _fit(known)
    assert novelty(known).max() < novelty(_features(50, seed=3) + 200).min()


def test_features_that_never_vary_are_allowed():
    known = torch.cat([_features(100), torch.zeros(100, 2)], 1)
    novelty = _fit(known)
    assert torch.isfinite(novelty(known)).all()
    assert torch.equal(_fit(torch.ones(10, 3))(torch.ones(10, 3)), torch.zeros(10))


def _images(count: int, seed: int, base: int = 100) -> np.ndarray:
    """Smooth plates with a little noise, uint8 (N, 3, 16, 24)."""
    random = np.random.default_rng(seed)
    slope = np.linspace(-30, 30, 24) * random.uniform(0.5, 1.5, (count, 1, 1, 1))
    return (base + slope + random.normal(0, 5, (count, 3, 16, 24))).clip(0, 255).astype(np.uint8)


def test_images_unlike_those_fitted_are_more_novel_than_images_like_them():
    torch.manual_seed(0)
    network = build("anomaly_segmenter", (16, 24), ("normal", "anomalous"), {"width": 4}).eval()
    strange = np.random.default_rng(5).integers(0, 256, (30, 3, 16, 24)).astype(np.uint8)
    # Images that are labelled anomalous are not fitted: they stay novel.
    pixels = torch.from_numpy(np.concatenate([_images(400, 0), strange]))
    labels = torch.cat([torch.zeros(400), torch.ones(30)]).long()
    with torch.inference_mode():
        before = network(pixels)[2]
    network.after_fit(pixels, labels)
    with torch.inference_mode():
        alike = network(torch.from_numpy(_images(100, 1)))[2]
        unlike = network(torch.from_numpy(strange))[2]
    assert torch.equal(before, torch.zeros(430))
    assert unlike.min() > alike.max()


def test_of_many_images_only_some_are_fitted(monkeypatch):
    from ml.models import anomaly_segmenter

    torch.manual_seed(0)
    network = build("anomaly_segmenter", (16, 24), ("normal", "anomalous"), {"width": 4}).eval()
    pixels = torch.from_numpy(_images(101, 0))
    labels = torch.zeros(101, dtype=torch.int64)
    monkeypatch.setattr(anomaly_segmenter, "_MAX_NOVELTY_IMAGES", 50)
    network.after_fit(pixels, labels)
    mean = network.novelty.mean.clone()
    monkeypatch.undo()
    network.after_fit(pixels[torch.arange(50) * 101 // 50], labels[:50])
    torch.testing.assert_close(network.novelty.mean, mean)
