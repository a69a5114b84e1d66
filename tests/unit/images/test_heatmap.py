"""Heat maps as pictures: red where it is hot, the image itself where it is not."""

import numpy as np
import pytest

from ml.images.decoding import decode
from ml.images.heatmap import overlay, overlay_jpeg


@pytest.mark.parametrize(("height", "width", "factor"), [(32, 56, 5), (16, 16, 10), (224, 300, 1)])
@pytest.mark.parametrize("coarser", [1, 2])
def test_the_hot_half_is_red_and_the_other_unchanged(height, width, factor, coarser):
    grey = np.full((3, height, width), 120, dtype=np.uint8)
    anomaly_map = np.zeros((height // coarser, width // coarser), dtype=np.float32)
    anomaly_map[:, : anomaly_map.shape[1] // 2] = 1

    overlaid = overlay(grey, anomaly_map)
    stored = decode(overlay_jpeg(grey, anomaly_map), max_pixels=10**6)

    assert overlaid.shape == stored.shape == (factor * height, factor * width, 3)
    hot, cold = overlaid[:, : overlaid.shape[1] // 3], overlaid[:, 2 * overlaid.shape[1] // 3 :]
    assert (hot[..., 0] > 200).all() and (hot[..., 1:] < 80).all()
    assert (cold == 120).all()
    assert np.abs(stored.astype(int) - overlaid).mean() < 3


def test_heat_that_is_no_number_or_out_of_range_is_drawn_all_the_same():
    grey = np.full((3, 160, 160), 120, dtype=np.uint8)
    anomaly_map = np.array([[np.nan, 0], [-3, 9]], dtype=np.float32)
    overlaid = overlay(grey, anomaly_map)
    assert (overlaid[:20, :20] == 120).all() and (overlaid[-20:, :20] == 120).all()
    assert (overlaid[-20:, -20:, 0] > 200).all()
    assert np.array_equal(overlaid[-20:, -20:], overlay(grey, np.ones((2, 2)))[-20:, -20:])
