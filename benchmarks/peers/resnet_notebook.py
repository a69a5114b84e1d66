"""The classifier of the usual notebook: torchvision's ResNet-18 in its ImageNet layout, the images
enlarged to 224 x 224 pixels, Adam, batches of 64, float32.

On a CPU an epoch takes hours, so some steps of one are timed and the rest is extrapolated. The
accuracy such a notebook reaches is not measured here.
"""

import io
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from benchmarks.figures import epoch_seconds, images_per_second

BATCH = 64
WARM_UP, STEPS = 3, 20
_SIDE = 224
_LEARNING_RATE = 1e-3
_RATED_ON = 64
# Mean and deviation of ImageNet's channels, as torchvision's recipes have them.
_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
_DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def measure(
    pixels: np.ndarray, labels: np.ndarray, classes: int, seed: int, steps: int = STEPS
) -> dict[str, float]:
    """Seconds of an epoch (extrapolated from `steps` steps after a warm-up), images_per_second of
    the forward pass in torch, and size_mb of the weights as torch.save writes them.

    Parameters
    ----------
    pixels, labels: uint8 (N, 3, H, W) and int64 (N,), all that an epoch goes through.
    """
    torch.manual_seed(seed)
    network = torchvision.models.resnet18(weights=None, num_classes=classes)
    seconds = list(islice(_steps(network, pixels, labels), WARM_UP + steps))[WARM_UP:]
    return {
        "epoch_seconds": epoch_seconds(seconds, len(pixels), BATCH),
        "images_per_second": _rate(network, pixels[:_RATED_ON]),
        "size_mb": _size_mb(network),
    }


def _steps(network: nn.Module, pixels: np.ndarray, labels: np.ndarray) -> Iterator[float]:
    """Train; yields the seconds of each step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    network.train()
    while True:
        started = time.perf_counter()
        chosen = torch.randint(len(pixels), (BATCH,)).numpy()
        loss = F.cross_entropy(network(_prepared(pixels[chosen])), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield time.perf_counter() - started


def _prepared(pixels: np.ndarray) -> torch.Tensor:
    images = torch.from_numpy(pixels).float() / 255
    return (F.interpolate(images, (_SIDE, _SIDE), mode="bilinear") - _MEAN) / _DEVIATION


def _rate(network: nn.Module, pixels: np.ndarray) -> float:
    network.eval()
    with torch.inference_mode():
        return images_per_second(lambda: network(_prepared(pixels)), len(pixels))


def _size_mb(network: nn.Module) -> float:
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.tell() / 1e6
