"""How unlike the normal training images an image is, in what the network makes of it."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Features that hardly vary would turn rounding errors into distance: their deviation counts as
# this share of the largest, and no direction's variance is below this share of the mean one.
_LEAST_DEVIATION = 1e-2
_LEAST_SHRINKAGE = 1e-2


class Novelty(nn.Module):
    """The Mahalanobis distance of a feature vector to those of normal images.

    After Lee et al. (2018), "A simple unified framework for detecting out-of-distribution samples
    and adversarial attacks", with one Gaussian, as there is one class. Its covariance is shrunk as
    Ledoit and Wolf (2004) do, so that a few images are enough. Before `fit` everything has a
    novelty of 0.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(size))
        self.whitening = nn.Buffer(torch.zeros(size, size))

    def fit(self, features: Tensor) -> None:
        """Take mean and covariance from the features of normal images, float (N, size).

        Fewer than two different images have no covariance: then nothing changes.
        """
        values = features.detach().cpu().numpy().astype(np.float64)
        if len(values) < 2 or not np.ptp(values, axis=0).any():
            return
        mean = values.mean(axis=0)
        self.mean.copy_(torch.from_numpy(mean))
        self.whitening.copy_(torch.from_numpy(_whitening(values - mean)))

    def forward(self, features: Tensor) -> Tensor:
        """Novelty in [0, 1], float32 (B,), for features float (B, size).

        It rises with the squared distance d2, as d2 / (d2 + size). Of the images that were fitted
        the mean d2 is at most `size`, so most of them are below a half.
        """
        whitened = F.linear(features.float() - self.mean, self.whitening)
        size = features.shape[1]
        # Written so that a distance which overflows gives 1, not infinity over infinity.
        return 1 - size / (whitened.square().sum(1) + size)


def _whitening(centred: np.ndarray) -> np.ndarray:
    """The matrix (size, size) that turns `centred` (N, size) into features of covariance 1."""
    from scipy.linalg import cholesky, solve_triangular
    from sklearn.covariance import empirical_covariance, ledoit_wolf_shrinkage, shrunk_covariance

    deviation = centred.std(axis=0)
    # Scaled first: features differ in their units, and shrinkage makes their variances alike.
    scale = np.maximum(deviation, _LEAST_DEVIATION * deviation.max())
    scaled = centred / scale
    shrinkage = max(ledoit_wolf_shrinkage(scaled, assume_centered=True), _LEAST_SHRINKAGE)
    empirical = empirical_covariance(scaled, assume_centered=True)
    covariance = shrunk_covariance(empirical, shrinkage)
    root = cholesky(covariance, lower=True)
    return solve_triangular(root, np.eye(len(root)) / scale, lower=True)
