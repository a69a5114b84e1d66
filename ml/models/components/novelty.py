"""How unlike the normal training images an image is, measured on the network's features."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FloatArray = npt.NDArray[np.float64]

# A feature that hardly varies would turn rounding errors into distance. So its standard deviation
# counts as at least this share of the largest one ...
_MIN_DEVIATION_RATIO = 1e-2
# ... and the covariance is shrunk by at least this much, which bounds its smallest eigenvalue.
_MIN_SHRINKAGE = 1e-2


class Novelty(nn.Module):
    """The Mahalanobis distance of a feature vector to those of normal images.

    After Lee et al., "A simple unified framework for detecting out-of-distribution samples and
    adversarial attacks", 2018, with one Gaussian, as there is one class. The covariance is shrunk
    as by Ledoit and Wolf ("A well-conditioned estimator for large-dimensional covariance matrices",
    2004), so that a few images are enough. Before `fit` the novelty of every image is 0.

    Args:
        size: the number of features.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(size))
        self.whitening = nn.Buffer(torch.zeros(size, size))

    def fit(self, features: Tensor) -> None:
        """Estimate mean and covariance from the features of normal images.

        Fewer than two different images have no covariance: then nothing changes.

        Args:
            features: float (N, size).
        """
        values = features.detach().cpu().numpy().astype(np.float64)
        if len(values) < 2 or not np.ptp(values, axis=0).any():
            return
        mean = values.mean(axis=0)
        self.mean.copy_(torch.from_numpy(mean))
        self.whitening.copy_(torch.from_numpy(_whitening_matrix(values - mean)))

    def forward(self, features: Tensor) -> Tensor:
        """Compute the novelty d2 / (d2 + size) from the squared distance d2.

        The mean d2 of the images that were fitted is at most `size`, so most of them have a novelty
        below a half.

        Args:
            features: float (B, size).

        Returns:
            float32 (B,), in [0, 1].
        """
        whitened = F.linear(features.float() - self.mean, self.whitening)
        size = features.shape[1]
        # In this form a distance that overflows gives 1, not infinity divided by infinity.
        return 1 - size / (whitened.square().sum(1) + size)


def _whitening_matrix(centred: FloatArray) -> FloatArray:
    """The matrix (size, size) that gives `centred` (N, size) the identity as its covariance."""
    from scipy.linalg import cholesky, solve_triangular
    from sklearn.covariance import empirical_covariance, ledoit_wolf_shrinkage, shrunk_covariance

    deviation = centred.std(axis=0)
    # Scaled first: features differ in their units, and shrinkage makes their variances alike.
    scale = np.maximum(deviation, _MIN_DEVIATION_RATIO * deviation.max())
    scaled = centred / scale
    shrinkage = max(ledoit_wolf_shrinkage(scaled, assume_centered=True), _MIN_SHRINKAGE)
    empirical = empirical_covariance(scaled, assume_centered=True)
    covariance = shrunk_covariance(empirical, shrinkage)
    factor = cholesky(covariance, lower=True)
    whitening: FloatArray = solve_triangular(factor, np.eye(len(factor)) / scale, lower=True)
    return whitening
